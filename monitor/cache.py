"""The index cache: parsed columns of big log files, so that a panel opens them without reading them again.

One file per log, under the user's cache folder and never under the log folder. It is used only when the log
is still the file that was read: same device and inode, at least as long, same first and last bytes before the
offset. What was appended since is then read from that offset.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson

from monitor.series import Column, Segment

MAGIC = b"VTMONIDX"
VERSION = 3
HEAD_BYTES = 64


@dataclass
class FileIndex:
    """What is known of one log file: how far it was read (bytes) and what was found."""

    kind: str
    inode: tuple[int, int] = (0, 0)
    head: bytes = b""
    tail: bytes = b""
    offset: int = 0
    bad_lines: int = 0
    first_bad: str = ""
    segments: list[Segment] = field(default_factory=list)


def cache_file(folder: Path, log: Path) -> Path:
    """Where the index of ``log`` lies under ``folder``."""
    return folder / (hashlib.sha256(os.fsencode(log)).hexdigest()[:32] + ".idx")


def save(folder: Path, log: Path, index: FileIndex) -> bool:
    """Write an index atomically; False when the cache folder cannot be written (the panel works without)."""
    blobs: list[bytes] = []
    header_segments = []
    for segment in index.segments:
        steps = segment.steps
        columns = []
        blobs.append(steps.tobytes())
        for key, column in segment.columns.items():
            start, rows, values = column.state()
            columns.append([key, start, None if rows is None else len(rows), len(values)])
            if rows is not None:
                blobs.append(rows.tobytes())
            blobs.append(values.tobytes())
        header_segments.append({"rows": len(steps), "columns": columns})
    header = orjson.dumps(
        {
            "version": VERSION,
            "kind": index.kind,
            "inode": list(index.inode),
            "head": index.head.hex(),
            "tail": index.tail.hex(),
            "offset": index.offset,
            "bad_lines": index.bad_lines,
            "first_bad": index.first_bad,
            "segments": header_segments,
        }
    )
    target = cache_file(folder, log)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(MAGIC + len(header).to_bytes(8, "little") + header)
                for blob in blobs:
                    out.write(blob)
            Path(name).replace(target)
        except OSError:
            Path(name).unlink(missing_ok=True)
            return False
    except OSError:
        return False
    return True


def load(folder: Path, log: Path, kind: str) -> FileIndex | None:
    """The stored index of ``log`` when it still belongs to that file, else None."""
    try:
        stat = log.stat()
        with cache_file(folder, log).open("rb") as stored:
            if stored.read(len(MAGIC)) != MAGIC:
                return None
            header = orjson.loads(stored.read(int.from_bytes(stored.read(8), "little")))
            if header["version"] != VERSION or header["kind"] != kind:
                return None
            index = FileIndex(
                kind=kind,
                inode=(header["inode"][0], header["inode"][1]),
                head=bytes.fromhex(header["head"]),
                tail=bytes.fromhex(header["tail"]),
                offset=header["offset"],
                bad_lines=header["bad_lines"],
                first_bad=header["first_bad"],
            )
            if (stat.st_dev, stat.st_ino) != index.inode or not same_content(log, index, stat.st_size):
                return None
            for stored_segment in header["segments"]:
                steps = np.fromfile(stored, dtype=np.int64, count=stored_segment["rows"])
                columns: dict[str, Column] = {}
                for key, start, row_count, value_count in stored_segment["columns"]:
                    rows = None if row_count is None else np.fromfile(stored, dtype=np.int32, count=row_count)
                    values = np.fromfile(stored, dtype=np.float32, count=value_count)
                    if len(values) != value_count or (rows is not None and len(rows) != row_count):
                        return None
                    columns[key] = Column.restored(start, rows, values)
                if len(steps) != stored_segment["rows"]:
                    return None
                index.segments.append(Segment.restored(steps, columns))
            return index
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, MemoryError):
        return None


def same_content(log: Path, index: FileIndex, size: int) -> bool:
    """Whether the bytes already read are still there: the first ones and the last ones before the offset."""
    if size < index.offset:
        return False
    with log.open("rb") as handle:
        if handle.read(len(index.head)) != index.head:
            return False
        handle.seek(index.offset - len(index.tail))
        return handle.read(len(index.tail)) == index.tail
