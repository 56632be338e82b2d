"""Reward parts of single answers, which our reward functions write to ``reward_parts-*.jsonl`` of the run.

verl's training dump has only the score, so the parts are joined to it: by ``uid`` where a record has one,
else by the CRC-32 of the answer within its step. The files grow without end; only
the place of each step is kept.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson

CHUNK = 8 << 20
_STEP = re.compile(rb'"step":\s*(\d+)')


class RewardParts:
    """Finds the parts of a step's answers. The ingest thread calls ``advance``."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._offsets: dict[Path, int] = {}
        self._ranges: dict[Path, dict[int, tuple[int, int]]] = {}
        self.error = ""

    def advance(self) -> bool:
        """Note where each step's records lie in what was appended; True when there is more to read."""
        more = False
        for path in self.paths:
            offset = self._offsets.get(path, 0)
            try:
                size = path.stat().st_size
                if size < offset:
                    offset, self._ranges[path] = 0, {}
                if size == offset:
                    continue
                with path.open("rb") as handle:
                    handle.seek(offset)
                    data = handle.read(CHUNK)
            except OSError as error:
                self.error = f"{path.name} cannot be read: {error.strerror or error}"
                continue
            end = data.rfind(b"\n") + 1
            ranges = self._ranges.setdefault(path, {})
            at = 0
            while at < end:
                stop = data.index(b"\n", at) + 1
                if match := _STEP.search(data, at, stop):
                    step = int(match.group(1))
                    first, _ = ranges.get(step, (offset + at, 0))
                    ranges[step] = (first, offset + stop)
                at = stop
            self._offsets[path] = offset + end
            more |= bool(end) and offset + end < size
        return more

    def of_step(self, step: int, split: str) -> dict[str, dict[str, Any]]:
        """``uid`` or ``crc:<answer>`` -> parts, of one step of ``split`` (train or val)."""
        found: dict[str, dict[str, Any]] = {}
        for path in self.paths:
            begin, end = self._ranges.get(path, {}).get(step, (0, 0))
            if begin >= end:
                continue
            try:
                with path.open("rb") as handle:
                    handle.seek(begin)
                    lines = handle.read(end - begin).split(b"\n")
            except OSError as error:
                self.error = f"{path.name} cannot be read: {error.strerror or error}"
                continue
            for line in lines:
                try:
                    row = orjson.loads(line) if line else None
                except orjson.JSONDecodeError:
                    continue
                if (
                    not isinstance(row, dict)
                    or row.get("step") != step
                    or not isinstance(row.get("parts"), dict)
                ):
                    continue
                if row.get("split", split) != split:
                    continue
                name = row.get("uid") or f"crc:{row.get('answer_crc32')}"
                found[str(name)] = {key: value for key, value in row["parts"].items() if key != "score"}
        return found


def name_of(output: str) -> str:
    """The key under which ``of_step`` holds the parts of an answer without a uid."""
    return f"crc:{crc32(output.encode('utf-8', 'backslashreplace'))}"
