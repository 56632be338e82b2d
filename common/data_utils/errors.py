"""The two ways in which data can be wrong: the whole request (DataError) or one row of it (RowError)."""

from __future__ import annotations


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
