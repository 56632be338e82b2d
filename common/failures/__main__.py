"""python -m common.failures CONSOLE_LOG_OR_RUN_FOLDER [--exit-code N] [--json]"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from common.failures import explain_file
from common.launcher import runs
from common.launcher.errors import UserError, exit_with


def newest_console(folder: Path) -> tuple[Path, int | None]:
    """Console log and exit code of a run's newest attempt."""
    attempts = runs.read(folder).get("attempts") or []
    if not attempts:
        raise UserError(f"{folder}: this run was never started")
    return folder / attempts[-1]["console"], attempts[-1].get("exit_code")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m common.failures", description="Say in plain words why a run ended badly."
    )
    parser.add_argument("log", type=Path, help="a console log (of any verl run), or a run's folder")
    parser.add_argument("--exit-code", type=int, help="of the command, where it is known")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    own = parser.parse_args()
    log, code = newest_console(own.log) if own.log.is_dir() else (own.log, None)
    try:
        failure = explain_file(log, own.exit_code if own.exit_code is not None else code)
    except OSError as error:
        raise UserError(f"{log} cannot be read: {error.strerror or error}") from None
    print(json.dumps(failure.as_dict(), ensure_ascii=False) if own.json else "\n".join(failure.lines(log)))


if __name__ == "__main__":
    exit_with(main)
