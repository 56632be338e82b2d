"""The two ways in which data can be wrong: the whole request (DataError) or one row of it (RowError)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_traceback(place: object) -> Iterator[None]:
    """Turn what the system refuses (permission, full disk, a file where a folder should be) into a DataError."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of our output left: no mistake of anybody
    except OSError as problem:
        reason = problem.strerror or (str(problem).splitlines() or [type(problem).__name__])[0]
        raise DataError(f"{problem.filename or place}: {reason}") from None


class DataError(Exception):
    """A problem the user can mend. Each entry of `problems` is one complete line of advice."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class RowError(Exception):
    """One row cannot become a training row: which field of it, and why."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
