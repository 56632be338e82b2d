"""A user's mistake is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

EXIT_USER_ERROR = 2


class UserError(Exception):
    """Something the user has to mend; the message says what, where and how. May hold several lines."""


def exit_with(main: Callable[[], None]) -> None:
    """Run *main*; turn ``UserError`` into ``error: ...`` lines and exit code 2."""
    try:
        main()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
