"""From a console log and an exit code to what failed, in which phase, why and what to do about it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from common.failures import console, phases
from common.failures.console import Line, Raised
from common.failures.patterns import Pattern, table
from common.reward_functions.records import read_marker

SHOWN_FRAMES = 6
REWARD_KINDS = ("reward", "reward_file")
SEARCHED_LINES = 20_000
# What a program says that ends by itself.
_SAID = re.compile(r"^\s*(?:error|fatal|failed)\b", re.IGNORECASE)
_LIBRARY = re.compile(r"site-packages/(?!verl/)|/lib/python3[\d.]*/(?!site-packages/)|\.pxi$|\.pyx$|^<")
# A line of the config that verl prints, which names many things that did not happen.
_CONFIG = re.compile(r"^\s*[{\[]*'[^']*'(?:: |,|\]|\})|^ray init kwargs")


@dataclass(frozen=True)
class Failure:
    """What is known of a failure.

    Attributes:
        kind: id of the pattern that fits; "unknown" when none does, "" when nothing failed.
        what: one sentence.
        phase: of the run, see `phases`.
        error: the root exception, `type: message`, or the line that tells; "" when there is none.
        do: what to change.
        where: `file:line in function` of the innermost frame outside of libraries.
        line: of the log, 0 when none can be named.
        traceback: the end of the root exception's own traceback.
    """

    kind: str
    what: str
    phase: str
    error: str
    do: str
    where: str = ""
    line: int = 0
    traceback: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For run.json."""
        return {**asdict(self), "traceback": list(self.traceback)}

    def lines(self, log: Path | None = None) -> list[str]:
        """For people, a line each."""
        place = f", line {self.line} of {log}" if log and self.line else f", see {log}" if log else ""
        found = [f"failed   {self.what}", f"phase    {self.phase}{place}"]
        if self.error:
            found.append(f"error    {self.error}")
        if self.kind == "unknown" and self.traceback:
            found += ["         " + text for text in self.traceback]
        elif self.where:
            found.append(f"where    {self.where}")
        return [*found, f"do       {self.do}"]


def explain_file(path: Path, exit_code: int | None = None) -> Failure:
    """`explain` of a log file.

    Raises:
        OSError: it cannot be read.
    """
    return explain(console.read(path), exit_code)


def explain(text: str, exit_code: int | None = None) -> Failure:
    """What went wrong according to a console log.

    Args:
        text: the log, as verl, Ray and torchrun wrote it.
        exit_code: of the command; 128 + N for a signal N. None = not known.
    """
    lines = console.lines_of(text)
    errors = console.raised(lines)
    root = _root(errors)
    rows = table().failures
    for found in chain(
        (_by_error(row, root, root, errors, lines) for row in rows),
        (_by_log(row, root, errors, lines, exit_code) for row in rows),
    ):
        if found is not None:
            return found
    if root is None and exit_code in (None, 0):
        return Failure("", "no error is to be seen in this log", _phase(None, errors, lines), "", "nothing")
    code = "" if exit_code is None else f" with exit code {exit_code}"
    said = next((line for line in reversed(lines) if _SAID.match(line.text)), None)
    shown = root or said
    return Failure(
        "unknown",
        f"the command ended{code} for a reason that is not in our table",
        _phase(root, errors, lines),
        root.title if root else said.text.strip() if said else "",
        "read the traceback above; the whole log says what came before it"
        if root
        else "the log shows no traceback: read its last lines",
        _where(root),
        shown.line if isinstance(shown, Raised) else shown.number if shown else lines[-1].number,
        _end_of(root),
    )


def explain_run(folder: Path, attempt: dict[str, Any]) -> Failure:
    """`explain` of a run's newest attempt.

    A reward that stopped the run left its words in the folder too: Ray may end before it has printed them.

    Args:
        attempt: as run.json has it.

    Raises:
        OSError: its console log cannot be read.
    """
    found = explain_file(folder / attempt["console"], attempt.get("exit_code"))
    marker = read_marker(folder)
    if marker is None or found.kind in REWARD_KINDS:
        return found
    return replace(explain(f"reward error: {marker['message']}"), phase=phases.REWARD, line=0)


def _is_wrapper(error: Raised) -> bool:
    return any(pattern.search(f"{error.type}: {error.message}") for pattern in table().wrappers)


def _is_consequence(error: Raised) -> bool:
    return any(pattern.search(f"{error.type}: {error.message}") for pattern in table().consequences)


def _root(errors: list[Raised]) -> Raised | None:
    """The exception that the others come from.

    The driver's last traceback ends in it, once Ray's wrapping is off; where that one only reports that another
    process failed, the first exception of any process that is not such a report.
    """
    last = next((error for error in reversed(errors) if error.source == "" and not _is_wrapper(error)), None)
    if last and not _is_consequence(last):
        return last
    real = [error for error in errors if not _is_wrapper(error)]
    first = next((error for error in real if not _is_consequence(error)), real[0] if real else None)
    # A chain shows one exception several times, at first without the frames that led to it.
    same = [error for error in real if first and (error.title, error.source) == (first.title, first.source)]
    return max(same, key=lambda error: len(error.frames), default=None)


def _phase(root: Raised | None, errors: list[Raised], lines: list[Line]) -> str:
    chain = [error for error in errors if _is_wrapper(error) and (root is None or root.name in error.type)]
    return phases.phase_of(root, chain, lines)


def _by_error(
    pattern: Pattern, error: Raised | None, root: Raised | None, errors: list[Raised], lines: list[Line]
) -> Failure | None:
    """The failure that *pattern* describes, if *error* is one."""
    if error is None or _is_wrapper(error):
        return None
    match = pattern.search(f"{error.type}: {error.message}") or pattern.search_frames(error.frames)
    if match is None:
        return None
    # What only follows from another exception is shown with that one.
    shown = root if root and _is_consequence(error) and not _is_consequence(root) else error
    return _filled(pattern, match.groupdict(), _phase(shown, errors, lines), shown.title, shown.line, shown)


def _by_log(
    pattern: Pattern, root: Raised | None, errors: list[Raised], lines: list[Line], exit_code: int | None
) -> Failure | None:
    """The failure that *pattern* describes, if another exception, a line or the exit code says so."""
    if pattern.alone and root and not _is_consequence(root):
        return None
    for error in errors:
        if error is not root and (found := _by_error(pattern, error, root, errors, lines)):
            return found
    if pattern.anywhere:
        for line in lines[-SEARCHED_LINES:]:
            match = pattern.search(line.text)
            if match and not _CONFIG.match(line.text):
                phase = _phase(root, errors, lines)
                return _filled(pattern, match.groupdict(), phase, line.text.strip()[:400], line.number, root)
    if exit_code is not None and exit_code in pattern.codes:
        said = root.title if root else ""
        return _filled(pattern, {}, _phase(root, errors, lines), said, root.line if root else 0, root)
    return None


def _filled(
    pattern: Pattern, groups: dict[str, str | None], phase: str, error: str, line: int, root: Raised | None
) -> Failure:
    values = {name: value or "?" for name, value in groups.items()}
    do = pattern.do.get(phase, pattern.do[""])
    return Failure(
        pattern.kind,
        pattern.says.format(phase=phase, **values),
        phase,
        error,
        do.format(phase=phase, **values),
        _where(root),
        line,
        _end_of(root),
    )


def _where(error: Raised | None) -> str:
    """The innermost frame of verl, of ours or of the user's; "" where there is none."""
    own = [frame for frame in error.frames if not _LIBRARY.search(frame[0])] if error else []
    return "{}:{} in {}".format(*own[-1]) if own else ""


def _end_of(error: Raised | None) -> tuple[str, ...]:
    """The last frames and the exception itself, without the marks under the code."""
    if error is None:
        return ()
    text = [line for line in error.text if line.strip(" ^~|")]
    return tuple(line[:300] for line in text[-(2 * SHOWN_FRAMES + 2) :])
