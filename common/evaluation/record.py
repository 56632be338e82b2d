"""The record of an evaluation: JSON Lines, one per finished sample, written at once; what all else is made from.

The keys `input, output, gts, score, step, uid` are those of verl's own dumps, so the monitor opens the file.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from common.data_utils.atomic import temp_beside
from common.launcher.errors import UserError

Key = tuple[int, int]  # (item, sample)


def json_line(value: dict[str, Any]) -> bytes:
    """One line of JSON in UTF-8, whatever the texts hold.

    NaN and infinity become the strings "NaN", "Infinity", "-Infinity" (JSON has no such numbers); a lone
    surrogate becomes its escape, which Python's json reads back.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, default=str)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(_finite(value), default=str).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def parse_line(line: bytes) -> dict[str, Any] | None:
    """A line's content; None for one that a kill cut short."""
    try:
        value = orjson.loads(line)
    except ValueError:  # orjson refuses escaped lone surrogates
        try:
            value = json.loads(line)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


class Record:
    """The lines of one file, found by (item, sample); a later line replaces an earlier one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[Key, int] = {}  # offset of the line
        self._handle: BinaryIO | None = None

    def scan(self) -> Record:
        """Read which samples there are.

        Raises:
            UserError: the file is no record of test.sh.
        """
        self.places.clear()
        if not self.path.exists():
            return self
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    row = parse_line(line)
                    if row is None or "item" not in row or "sample" not in row:
                        raise UserError(
                            f"{self.path} line {number} is no result of test.sh: choose another --output_file"
                        )
                    self.places[row["item"], row["sample"]] = offset
                offset += len(line)
        return self

    def open(self) -> Record:
        """Scan, cut a half-written last line off, and keep the file open for new ones.

        Raises:
            UserError: another process writes to it, or it cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = self.path.open("ab")
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self.path} is being written by another test.sh: wait, or change --output_file"
            ) from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror or error}") from None
        size = self.path.stat().st_size
        if size:
            with self.path.open("rb") as file:
                keep = _end_of_last_line(file, size)
            os.truncate(self.path, keep)
        return self.scan()

    def append(self, row: dict[str, Any]) -> None:
        """Write one line; it survives a kill from here on."""
        assert self._handle is not None
        self.places[row["item"], row["sample"]] = self._handle.seek(0, os.SEEK_END)
        self._handle.write(json_line(row))
        self._handle.flush()

    def rows(self, keys: list[Key] | None = None) -> Iterator[dict[str, Any]]:
        """The lines of *keys* (default: all), in order of item and sample."""
        if not self.places:
            return
        with self.path.open("rb") as file:
            for key in sorted(self.places) if keys is None else keys:
                file.seek(self.places[key])
                row = parse_line(file.readline())
                assert row is not None, key
                yield row

    def rewrite(self, change: Any = None) -> None:
        """Put the lines in order, one per sample, each through *change*, in one step."""
        temporary = temp_beside(self.path)
        places: dict[Key, int] = {}
        try:
            with temporary.open("wb") as file:
                for row in self.rows():
                    places[row["item"], row["sample"]] = file.tell()
                    file.write(json_line(change(row) if change else row))
                file.flush()
                os.fsync(file.fileno())
            self.close()
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self.places = places

    def close(self) -> None:
        """Let go of the file."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def _end_of_last_line(file: BinaryIO, size: int) -> int:
    """Length of the file up to its last line feed."""
    end = size
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
