"""What of a log can tell why the run ended: its exceptions, the one they come from, and its lines.

A step that is logged shows that everything before it was survived, so only what follows the newest one counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from common.failures import console, phases
from common.failures.console import Line, Raised
from common.failures.patterns import Pattern, table

SEARCHED_LINES = 20_000
# Nothing but a signal ends a process with these.
KILLED = (137, 139)
_LIBRARY = re.compile(r"site-packages/(?!verl/)|/lib/python3[\d.]*/(?!site-packages/)|\.pxi$|\.pyx$|^<")
# verl's code and ours; everything else that is no library is the user's.
_OURS = re.compile(
    r"site-packages/verl/|/verl/(trainer|workers|utils|experimental|models|single_controller|protocol\.py)"
    r"|/common/\w+/\w+\.py|/dpo/(dpo_trainer|preference_data|pair_store|batches|reference)\.py"
)
# A line of the config that verl prints, which names many things that did not happen.
_CONFIG = re.compile(r"^\s*[{\[]*'[^']*'(?:: |,|\]|\})|^ray init kwargs")
# What a program says that ends by itself.
_SAID = re.compile(r"^\s*(?:error|fatal|failed)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """A log, taken apart.

    Attributes:
        lines: all of it.
        errors: the exceptions that count, in order.
        root: the one that the others come from.
        exit_code: of the command, where it is known.
        step: line of the newest logged step, 0 where none was logged.
        step_before: the same of the step before it.
    """

    lines: list[Line]
    errors: list[Raised]
    root: Raised | None
    exit_code: int | None
    step: int
    step_before: int

    @property
    def phase(self) -> str:
        """Where the root exception was raised, or how far the log came."""
        return self.phase_of(self.root)

    def phase_of(self, error: Raised | None) -> str:
        """The same of any exception."""
        chain = [one for one in self.errors if is_wrapper(one.whole)]
        around = [one for one in chain if error is None or error.name in one.type]
        return phases.phase_of(error, around, self.lines)

    @property
    def cause(self) -> Raised | None:
        """The root exception, unless it only follows from something that is not in the log as an exception.

        Neither is it one where a signal ended the driver, which had not failed by what a worker raised.
        """
        killed = self.exit_code in KILLED and self.root is not None and self.root.source != ""
        return self.root if self.root and not killed and not is_consequence(self.root) else None

    @property
    def said(self) -> Line | None:
        """The newest line in which a program says itself that it failed."""
        return next(
            (line for line in reversed(self.lines) if line.number > self.step and _SAID.match(line.text)),
            None,
        )

    def telling(self, pattern: Pattern) -> Iterator[tuple[Line, re.Match[str]]]:
        """The lines that may say what *pattern* describes; a signal's exit code says more than most."""
        after = 0
        if not pattern.fatal:
            if self.exit_code in KILLED:
                return
            # What stands above an exception with its own cause did not end the run.
            after = max(
                self.step_before if pattern.lasting else self.step, self.cause.line if self.cause else 0
            )
        for line in self.lines[-SEARCHED_LINES:]:
            match = pattern.search(line.text) if line.number > after else None
            if match and not _CONFIG.match(line.text):
                yield line, match


def read(text: str, exit_code: int | None, codes: set[int]) -> Reading:
    """Take a log apart.

    Args:
        text: of the log.
        exit_code: of the command, where it is known.
        codes: those that say something themselves.
    """
    lines = console.lines_of(text)
    errors = console.raised(lines)
    before, step = [0, 0, *phases.steps_logged(lines).values()][-2:]
    newer = [error for error in errors if error.line > step]
    if newer and root_of(newer) is None:
        # Processes print at once: what a wrapper carries may stand above a step that another process logs.
        newer = [error for error in errors if error.line > before]
    found = Reading(lines, newer, root_of(newer), exit_code, step, before)
    if newer or found.said or exit_code in codes:
        return found
    # Better an exception that was survived than none.
    return replace(found, errors=errors, root=root_of(errors))


def is_wrapper(text: str) -> bool:
    """Whether an exception (`type: message`), or a line, only carries another process's exception."""
    return any(pattern.search(text) for pattern in table().wrappers)


def is_consequence(error: Raised) -> bool:
    """Whether an exception only says that another process is gone."""
    return any(pattern.search(error.whole) for pattern in table().consequences)


def root_of(errors: list[Raised]) -> Raised | None:
    """The exception that the others come from.

    The driver's last traceback ends in it, once Ray's wrapping is off; where that one only reports that another
    process failed, the first exception of any process that is not such a report.
    """
    real = [error for error in errors if not is_wrapper(error.whole)]
    last = next((error for error in reversed(real) if error.source == ""), None)
    if last and not is_consequence(last):
        return last
    first = next((error for error in real if not is_consequence(error)), real[0] if real else None)
    # A chain shows one exception several times, at first without the frames that led to it.
    same = [error for error in real if first and (error.title, error.source) == (first.title, first.source)]
    return max(same, key=lambda error: len(error.frames), default=None)


def innermost(error: Raised | None) -> tuple[str, int, str] | None:
    """The innermost frame of verl, of ours or of the user's; None where there is none."""
    own = [frame for frame in error.frames if not _LIBRARY.search(frame[0])] if error else []
    return own[-1] if own else None


def is_users(error: Raised) -> bool:
    """Whether an exception was raised in code of the user's, or by a library that it called."""
    frame = innermost(error)
    return frame is not None and not _OURS.search(frame[0])
