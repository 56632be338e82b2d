"""From a console log and an exit code to what failed, in which phase, why and what to do about it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from common.failures import console, phases, reading
from common.failures.console import Raised
from common.failures.patterns import Pattern, table
from common.failures.reading import Reading
from common.reward_functions.records import read_marker

SHOWN_FRAMES = 6
REWARD_KINDS = ("reward", "reward_file")
SWALLOWED = "reward_swallowed"


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
    log = reading.read(text, exit_code, {0, *(code for row in table().failures for code in row.codes)})
    rows = [row for row in table().failures if log.step or not row.logged]
    found = chain(
        (_by_error(row, log.root, log) for row in rows),
        (_by_log(row, log) for row in rows if row.kind in (*REWARD_KINDS, SWALLOWED)),
        (_by_reward(row, log) for row in rows),
        (_by_log(row, log) for row in rows),
    )
    return next((one for one in found if one is not None), None) or _unknown(log)


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


def _unknown(log: Reading) -> Failure:
    """What can be said where the table knows nothing."""
    root, said = log.root, log.said
    if root is None and log.exit_code in (None, 0):
        return Failure("", "no error is to be seen in this log", log.phase, "", "nothing")
    code = "" if log.exit_code is None else f" with exit code {log.exit_code}"
    return Failure(
        "unknown",
        f"the command ended{code} for a reason that is not in our table",
        log.phase,
        root.title if root else said.text.strip() if said else "",
        "read the traceback above; the whole log says what came before it"
        if root
        else "the log shows no traceback: read its last lines",
        _where(root),
        root.line if root else (said or log.lines[-1]).number,
        _end_of(root),
    )


def _by_error(pattern: Pattern, error: Raised | None, log: Reading) -> Failure | None:
    """The failure that *pattern* describes, if *error* is one."""
    if error is None or reading.is_wrapper(error.whole) or (pattern.ours and reading.is_users(error)):
        return None
    match = (
        pattern.search(error.whole)
        or pattern.search_at(_place(error), error.whole)
        or pattern.search_frames(error.frames)
    )
    if match is None:
        return None
    # What only follows from another exception is shown with that one.
    shown = log.cause if log.cause and reading.is_consequence(error) else error
    return _filled(pattern, match.groupdict(), log.phase_of(shown), shown.title, shown.line, shown)


def _by_log(pattern: Pattern, log: Reading) -> Failure | None:
    """The failure that *pattern* describes, if another exception, a line or the exit code says so."""
    if pattern.alone and log.cause:
        return None
    for error in log.errors:
        if error is not log.root and (found := _by_error(pattern, error, log)):
            return found
    for line, match in log.telling(pattern) if pattern.anywhere else ():
        said, number = line.text.strip()[:400], line.number
        if log.cause and reading.is_wrapper(line.text):
            said, number = log.cause.title, log.cause.line
        return _filled(pattern, match.groupdict(), log.phase, said, number, log.root)
    if log.exit_code not in pattern.codes:
        return None
    said, number = (log.root.title, log.root.line) if log.root else ("", 0)
    return _filled(pattern, {}, log.phase, said, number, log.root)


def _by_reward(pattern: Pattern, log: Reading) -> Failure | None:
    """A reward of the user's that raised without our guard around it."""
    root = log.cause
    if pattern.kind != "reward" or root is None or log.phase != phases.REWARD or not reading.is_users(root):
        return None
    return _filled(pattern, {"why": root.title}, log.phase, root.title, root.line, root)


def _filled(
    pattern: Pattern, groups: dict[str, str | None], phase: str, error: str, line: int, root: Raised | None
) -> Failure:
    values = defaultdict(lambda: "?", {name: value for name, value in groups.items() if value})
    values |= {"phase": phase, "error": error}
    says, do = (by.get(phase, by[""]).format_map(values) for by in (pattern.says, pattern.do))
    return Failure(pattern.kind, says, phase, error, do, _where(root), line, _end_of(root))


def _place(error: Raised) -> str:
    frame = reading.innermost(error)
    return f"{frame[0]} in {frame[2]}" if frame else ""


def _where(error: Raised | None) -> str:
    frame = reading.innermost(error)
    return "{}:{} in {}".format(*frame) if frame else ""


def _end_of(error: Raised | None) -> tuple[str, ...]:
    """The last frames and the exception itself, without the marks under the code."""
    if error is None:
        return ()
    text = [line for line in error.text if line.strip(" ^~|")]
    return tuple(line[:300] for line in text[-(2 * SHOWN_FRAMES + 2) :])
