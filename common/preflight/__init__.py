"""Everything about a run that can be known before it starts, on the very config that verl will see.

    ./train.sh --preflight-only
    ./train.sh --dry-run --no-preflight | python -m common.preflight

docs/preflight.md tells what is checked.
"""

from common.preflight.command import Command, parse
from common.preflight.finding import Finding
from common.preflight.report import Report, examine

__all__ = ["Command", "Finding", "Report", "examine", "parse"]
