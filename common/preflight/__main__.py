"""The preflight of one training command, as ./train.sh runs it, alone.

    ./train.sh --dry-run --no-preflight | python -m common.preflight [--json] [--force]
    python -m common.preflight [--json] [--force] -- PYTHON -m verl.trainer.main_ppo --config-path ... OVERRIDE ...

Exit code 0: nothing stands in the way; 2: an error does.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import traceback
from pathlib import Path

from common.launcher.errors import EXIT_USER_ERROR, UserError, exit_with
from common.preflight.command import parse
from common.preflight.machine import this_machine
from common.preflight.report import examine
from common.preflight.screen import show


def main() -> None:
    """Check one command, print one screen."""
    parser = argparse.ArgumentParser(
        prog="python -m common.preflight",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    parser.add_argument("--force", action="store_true", help="errors become warnings")
    parser.add_argument("--record", type=Path, help="what the launcher planned (a file of its own)")
    parser.add_argument(
        "--verl", type=Path, help="socket of a common.preflight.verl_check that was started before"
    )
    parser.add_argument("--stderr", action="store_true", help="the screen on stderr")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    own = parser.parse_args()
    command = parse(own.command or _words(sys.stdin.read()))
    os.environ.update(command.environment)  # for verl, which is asked in a process of its own
    record = json.loads(own.record.read_text(encoding="utf-8")) if own.record else {}
    machine = this_machine(os.environ, "trainer.device=cpu" not in command.overrides)
    report = examine(command, machine, record, force=own.force, socket=own.verl)
    if own.json:
        print(json.dumps(report.as_dict(), indent=1, ensure_ascii=False))
    else:
        show(report, sys.stderr if own.stderr else sys.stdout)
    sys.exit(EXIT_USER_ERROR if report.errors else 0)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as problem:
        raise UserError(
            f"stdin is no command that a shell could read ({problem}): check its quotes"
        ) from None


def guarded() -> None:
    """A mistake of ours must neither look like one of the user's nor keep them from training."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError:
        raise
    except Exception as problem:
        traceback.print_exc()
        raise UserError(
            f"the preflight itself failed ({type(problem).__name__}): report it; --no-preflight starts without it"
        ) from None


if __name__ == "__main__":
    exit_with(guarded)
