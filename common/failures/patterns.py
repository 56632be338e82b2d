"""The table of known failures, `patterns.yaml`, as compiled patterns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

INNERMOST = 3
FLAGS = ("anywhere", "fatal", "lasting", "alone", "logged", "ours")
TABLE = Path(__file__).with_name("patterns.yaml")


@dataclass(frozen=True)
class Pattern:
    """A row of the table, see its head for what the fields mean; `says` and `do` are by phase, "" for others."""

    kind: str
    regexes: tuple[re.Pattern[str], ...]
    frames: tuple[re.Pattern[str], ...]
    at: tuple[re.Pattern[str], ...]
    says: Mapping[str, str]
    do: Mapping[str, str]
    anywhere: bool
    fatal: bool
    lasting: bool
    alone: bool
    logged: bool
    ours: bool
    codes: tuple[int, ...]

    def search(self, text: str) -> re.Match[str] | None:
        """The first of the expressions that fits."""
        return next((match for regex in self.regexes if (match := regex.search(text))), None)

    def search_at(self, place: str, text: str) -> re.Match[str] | None:
        """The same for where an exception was raised, with its text."""
        return next((match for regex in self.at if (match := regex.search(f"{place}: {text}"))), None)

    def search_frames(self, frames: list[tuple[str, int, str]]) -> re.Match[str] | None:
        """The same for the innermost frames of a traceback, as `file in function`."""
        places = [f"{file} in {function}" for file, _, function in frames[-INNERMOST:]]
        return next(
            (match for regex in self.frames for place in places if (match := regex.search(place))), None
        )


@dataclass(frozen=True)
class Table:
    """The whole file."""

    wrappers: tuple[re.Pattern[str], ...]
    consequences: tuple[re.Pattern[str], ...]
    failures: tuple[Pattern, ...]


def _compiled(texts: list[str]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(text) for text in texts)


def _pattern(row: dict[str, Any]) -> Pattern:
    says, do = (row[name] if isinstance(row[name], dict) else {"": row[name]} for name in ("says", "do"))
    return Pattern(
        kind=row["kind"],
        regexes=_compiled(row["match"]),
        frames=_compiled(row.get("frames", [])),
        at=_compiled(row.get("at", [])),
        says=says,
        do=do,
        codes=tuple(row.get("codes", ())),
        **{flag: bool(row.get(flag)) for flag in FLAGS},
    )


@cache
def table() -> Table:
    """The table, read once."""
    raw = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return Table(
        _compiled(raw["wrappers"]), _compiled(raw["consequences"]), tuple(map(_pattern, raw["failures"]))
    )
