"""Read a console log: who said what, and which exceptions were raised, Ray's and torchrun's wrapping taken off."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

# A run that prints for weeks: how it began and how it ended say what failed.
HEAD_BYTES, TAIL_BYTES = 4 << 20, 16 << 20
# A config printed on one line has no business in regular expressions.
LINE_CHARACTERS = 20_000

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# `(WorkerDict pid=12, ip=10.0.0.1) `, `(RayTrainWorker(rank=0) pid=3) `, vLLM's `(EngineCore_DP0 pid=7) `, `(pid=4) `.
_SOURCE = re.compile(r"^\((?:[A-Za-z_][^()]*?(?:\([^)]*\))? ?)??pid=(?P<pid>\d+)[^)]*\) ?")
_RAYLET = re.compile(r"^\((?P<pid>raylet|autoscaler)[^)]*\) ")
_RANK = re.compile(r"^\[(?:rank|default)(?P<rank>\d+)\]:\s?")
# vLLM repeats its own log prefix before every line of a traceback.
_VLLM = re.compile(r"^(?:ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]+\] ?")
_BEGIN = re.compile(r"^\s*(?:\|\s*)?Traceback \(most recent call last\):")
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
_REMOTE = re.compile(r"ray::(?P<name>[\w.:]+)\(\)")
_RAISED = re.compile(r"^(?P<type>[A-Za-z_][\w.]*(?:\([\w.]+\))?)(?:: ?(?P<message>.*))?$")
_LOOKS_RAISED = re.compile(
    r"(Error|Exception|Interrupt|Exit|Warning|Timeout|Invalid|NotFound|Exceeded|Aborted)\)?$"
)
_CHAIN = ("During handling of the above exception", "The above exception was the direct cause")
MESSAGE_LINES = 12


@dataclass(frozen=True)
class Line:
    """One line of the log without colours and prefixes; `source` is the process that said it ("" = the driver)."""

    number: int
    source: str
    text: str


@dataclass
class Raised:
    """One exception as a traceback shows it.

    Attributes:
        type: class name with its module; `ray.exceptions.RayTaskError(ValueError)` for Ray's wrapping.
        message: its first lines, joined by newlines.
        frames: (file, line, function), outermost first.
        remote: `WorkerDict.actor_rollout_ref_update_actor` where Ray says in which remote call it was.
        line: of the log, where the exception itself stands.
        source: the process.
        text: the traceback's own lines.
    """

    type: str
    message: str
    frames: list[tuple[str, int, str]]
    line: int
    source: str
    remote: str = ""
    text: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Class name without its module."""
        return self.type.partition("(")[0].rpartition(".")[2]

    @property
    def whole(self) -> str:
        """`ValueError: the message`."""
        return f"{self.type}: {self.message}"

    @property
    def title(self) -> str:
        """`ValueError: the message's first line`."""
        first = self.message.strip().partition("\n")[0]
        return f"{self.type}: {first}" if first else self.type


def read(path: Path) -> str:
    """The log's text; of a huge one its beginning and its end."""
    with path.open("rb") as log:
        size = log.seek(0, 2)
        log.seek(0)
        if size <= HEAD_BYTES + TAIL_BYTES:
            data = log.read()
        else:
            data = log.read(HEAD_BYTES)
            log.seek(size - TAIL_BYTES)
            data += b"\n" + log.read()
    return data.decode("utf-8", "replace")


def lines_of(text: str, cut: int = LINE_CHARACTERS) -> list[Line]:
    """Lines without colours, progress bars' carriage returns and the prefixes that Ray, torchrun and vLLM add.

    Args:
        cut: characters of a line that are looked at.
    """
    found = []
    for number, raw in enumerate(text.split("\n"), 1):
        for part in _ANSI.sub("", raw[:cut]).split("\r"):
            source = ""
            for pattern in (_SOURCE, _SOURCE, _RAYLET, _RANK, _VLLM):
                match = pattern.match(part)
                if match:
                    named = match.groupdict()
                    source = named.get("pid") or (f"rank{named['rank']}" if "rank" in named else "") or source
                    part = part[match.end() :]
            found.append(Line(number, source, part.rstrip()))
    return found


def raised(lines: Iterable[Line]) -> list[Raised]:
    """Every exception with a traceback, in the order in which they appear; each process is read on its own."""
    by_source: dict[str, list[Line]] = {}
    for line in lines:
        by_source.setdefault(line.source, []).append(line)
    found = [one for of_source in by_source.values() for one in _raised(of_source)]
    return sorted(found, key=lambda one: one.line)


def _raised(lines: list[Line]) -> list[Raised]:
    found: list[Raised] = []
    at = 0
    while at < len(lines):
        text = lines[at].text
        if _BEGIN.match(text) or (_REMOTE.search(text) and "pid=" in text):
            at = _block(lines, at, found)
        else:
            at += 1
    return found


def _block(lines: list[Line], start: int, found: list[Raised]) -> int:
    """Read the traceback that begins at *start* into *found*; returns where to go on."""
    remote = _REMOTE.search(lines[start].text)
    frames: list[tuple[str, int, str]] = []
    indent = len(lines[start].text) - len(lines[start].text.lstrip())
    at = start + 1
    while at < len(lines) and at - start < 2000:
        text = lines[at].text
        body = text[indent:] if not text[:indent].strip() else text
        frame = _FRAME.match(body)
        match = None if body.startswith((" ", "\t", "^")) else _RAISED.match(body)
        if frame:
            frames.append((frame["file"], int(frame["line"]), frame["function"]))
        elif _BEGIN.match(text):
            return at
        elif match and frames and (_LOOKS_RAISED.search(match["type"]) or "." in match["type"]):
            # Where there is no message, what follows is another's.
            message, end = (
                ("", at + 1) if not match["message"] else _message(lines, at, match["message"], indent)
            )
            block = [line.text for line in lines[start:end]]
            name = remote["name"] if remote else ""
            found.append(
                Raised(match["type"], message, frames, lines[at].number, lines[at].source, name, block)
            )
            # `RayTaskError(X): ray::Y()` is followed by the frames inside the remote call.
            return at if _REMOTE.search(body) and at > start else end
        at += 1
    return at


def _message(lines: list[Line], at: int, first: str, indent: int) -> tuple[str, int]:
    parts, end = [first], at + 1
    while end < len(lines) and len(parts) < MESSAGE_LINES and lines[end].number - lines[end - 1].number <= 1:
        text = lines[end].text[indent:]
        if not text.strip() or text.startswith(_CHAIN) or _BEGIN.match(text) or _FRAME.match(text):
            break
        if _REMOTE.search(text) or _LOOKS_RAISED.search(text.partition(":")[0]):
            break
        parts.append(text)
        end += 1
    return "\n".join(parts), end
