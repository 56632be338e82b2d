"""python -m common.failures CONSOLE_LOG_OR_RUN_FOLDER [--exit-code N] [--json]"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common.failures import explain_file, explain_run
from common.launcher import runs
from common.launcher.errors import UserError, exit_with


def newest_attempt(folder: Path) -> dict[str, Any]:
    """A run's newest attempt, as run.json has it."""
    attempts = runs.read(folder).get("attempts") or []
    if not attempts:
        raise UserError(f"{folder}: this run was never started")
    return dict(attempts[-1])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m common.failures", description="Say in plain words why a run ended badly."
    )
    parser.add_argument("log", type=Path, help="a console log (of any verl run), or a run's folder")
    parser.add_argument("--exit-code", type=int, help="of the command, where it is known")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    own = parser.parse_args()
    log = own.log
    try:
        if log.is_dir():
            attempt = newest_attempt(log)
            given = {} if own.exit_code is None else {"exit_code": own.exit_code}
            failure, log = explain_run(log, {**attempt, **given}), log / attempt["console"]
        else:
            failure = explain_file(log, own.exit_code)
    except OSError as error:
        raise UserError(f"{log} cannot be read: {error.strerror or error}") from None
    print(json.dumps(failure.as_dict(), ensure_ascii=False) if own.json else "\n".join(failure.lines(log)))


if __name__ == "__main__":
    exit_with(main)
