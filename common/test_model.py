"""The evaluator behind test.sh: chat with any model or checkpoint, or score it on a file. See docs/evaluation.md."""

from __future__ import annotations

import sys

from common.evaluation import device, options
from common.launcher.errors import exit_with


def main() -> None:
    """Entry point of ``python -m common.test_model``."""
    arguments = sys.argv[1:]
    own = options.parse(arguments)
    device.prepare()  # before anything imports torch
    if own.compare:
        from common.evaluation.comparing import run
    elif own.sweep:
        from common.evaluation.sweeping import run
    elif own.rescore or own.export_only:
        from common.evaluation.batch import read_again as run
    elif own.batch:
        from common.evaluation.batch import run
    else:
        from common.evaluation.chat import run
    sys.exit(run(own))


if __name__ == "__main__":
    exit_with(main)
