"""The short door to the quality report: python -m common.check_data DATA --task rl [--val DATA]."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from common.data_utils.cli import add_report_flags, run, validate_command


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: training may start; 1: findings forbid it; 2: the request or the data cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m common.check_data", description="Is this data fit for training?"
    )
    add_report_flags(parser)
    parser.set_defaults(run=validate_command, command="validate")
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
