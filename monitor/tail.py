"""Follow one growing log file: read what is new, notice when it was replaced, never stop at a bad line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from monitor import cache, log_parser, tfevents
from monitor.series import append_batch

CHUNK = 1 << 20
EVENT_CHUNK = 4 << 20
CACHE_FROM_BYTES = 2 << 20
MAX_LINE = 64 << 20


class LogTail:
    """One log file and what has been read of it. Only the ingest thread calls ``advance``."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.index = cache.FileIndex(kind)
        self.size = 0
        self.mtime = 0.0
        self.revision = 0
        self.replaced = 0
        self.error = ""
        self._saved_at = 0
        self._since_save = 0
        self.cache_checked = False

    @property
    def behind(self) -> int:
        """Bytes of the file not read yet (a last line without its newline counts)."""
        return max(0, self.size - self.index.offset)

    def refresh(self) -> bool:
        """Look at the file's size and identity; True when there may be something to read."""
        try:
            stat = self.path.stat()
        except OSError as error:
            self._set_error(f"cannot be read: {error.strerror or error}")
            return False
        inode = (stat.st_dev, stat.st_ino)
        if self.index.offset and (
            inode != self.index.inode
            or stat.st_size < self.index.offset
            or (
                (stat.st_mtime != self.mtime or stat.st_size != self.size)
                and not self._unchanged(stat.st_size)
            )
        ):
            self._start_over()
        changed = stat.st_size != self.size or stat.st_mtime != self.mtime
        self.index.inode = inode
        self.size, self.mtime = stat.st_size, stat.st_mtime
        return changed or self.behind > 0

    def load_cache(self, folder: Path | None) -> bool:
        """Take over a stored index that still fits; True when one was found."""
        self.cache_checked = True
        if folder is None or self.index.offset or self.size < CACHE_FROM_BYTES:
            return False
        stored = cache.load(folder, self.path, self.kind)
        if stored is None:
            return False
        self.index = stored
        self._saved_at = stored.offset
        self.revision += 1
        return True

    def advance(self, budget: Callable[[], bool] = lambda: True) -> bool:
        """Read complete new lines, chunk by chunk while ``budget()`` holds; True when records were added."""
        if self.kind == "tfevents":
            return self._advance_tfevents(budget)
        before = self.revision
        try:
            with self.path.open("rb") as handle:
                handle.seek(self.index.offset)
                while (wanted := min(CHUNK, self.size - self.index.offset)) > 0:
                    data = handle.read(wanted)
                    end = data.rfind(b"\n") + 1
                    if not end and len(data) == CHUNK:  # one line longer than a chunk
                        data = self._long_line(handle, data)
                        end = data.rfind(b"\n") + 1
                        if not end and len(data) > MAX_LINE:
                            self._skip_giant(data)
                            end = len(data)
                        elif end:
                            self._take(data[:end])
                    elif end:
                        self._take(data[:end])
                    if not end or not budget():
                        break
                    handle.seek(self.index.offset)
            self._set_error("")
        except OSError as error:
            self._set_error(f"cannot be read: {error.strerror or error}")
        return self.revision != before

    def save_cache(self, folder: Path | None) -> None:
        """Store the index when the file is big and enough was added since the last time."""
        if folder is None or self.index.offset < CACHE_FROM_BYTES:
            return
        if self.index.offset - self._saved_at >= max(CACHE_FROM_BYTES, self._saved_at // 4):
            self._saved_at = self.index.offset
            cache.save(folder, self.path, self.index)

    def _take(self, data: bytes) -> None:
        parse = log_parser.parse_console if self.kind == "console" else log_parser.parse_jsonl
        batch = parse(data)
        index = self.index
        if index.offset < cache.HEAD_BYTES:
            index.head = (index.head + data)[: cache.HEAD_BYTES]
        index.tail = (index.tail + data[-cache.HEAD_BYTES :])[-cache.HEAD_BYTES :]
        index.offset += len(data)
        index.bad_lines += batch.bad_lines
        index.first_bad = index.first_bad or batch.first_bad
        if len(batch.steps) or batch.bad_lines:
            index.segments = append_batch(index.segments, batch)
            self.revision += 1

    @staticmethod
    def _long_line(handle: BinaryIO, begin: bytes) -> bytes:
        """More of a line that did not end within a chunk: up to its end, or to ``MAX_LINE``."""
        pieces, size = [begin], len(begin)
        while size <= MAX_LINE and (more := handle.read(CHUNK)):
            pieces.append(more)
            size += len(more)
            if b"\n" in more:
                break
        return b"".join(pieces)

    def _skip_giant(self, data: bytes) -> None:
        index = self.index
        index.bad_lines += 1
        index.first_bad = index.first_bad or f"a line of more than {MAX_LINE >> 20} MB"
        if not index.offset:
            index.head = data[: cache.HEAD_BYTES]
        index.tail = data[-cache.HEAD_BYTES :]
        index.offset += len(data)
        self.revision += 1

    def _advance_tfevents(self, budget: Callable[[], bool]) -> bool:
        before = self.revision
        index = self.index
        try:
            with self.path.open("rb") as handle:
                while budget():
                    handle.seek(index.offset)
                    data = handle.read(EVENT_CHUNK)
                    batch, used = tfevents.parse(data)
                    if not used:
                        break
                    if not index.offset:
                        index.head = data[: cache.HEAD_BYTES]
                    index.tail = data[max(0, used - cache.HEAD_BYTES) : used]
                    index.offset += used
                    index.bad_lines += batch.bad_lines
                    index.first_bad = index.first_bad or batch.first_bad
                    index.segments = append_batch(index.segments, batch)
                    self.revision += 1
            self._set_error("")
        except OSError as error:
            self._set_error(f"cannot be read: {error.strerror or error}")
        return self.revision != before

    def _unchanged(self, size: int) -> bool:
        try:
            return cache.same_content(self.path, self.index, size)
        except OSError:
            return True  # unreadable for now: keep what is shown, the next look decides

    def _start_over(self) -> None:
        self.index = cache.FileIndex(self.kind)
        self.replaced += 1
        self._saved_at = 0
        self.revision += 1

    def _set_error(self, text: str) -> None:
        if text != self.error:
            self.error = text
            self.revision += 1


def read_end(path: Path, size: int = 65536) -> bytes:
    """The last ``size`` bytes of a file; empty when it cannot be read."""
    try:
        with path.open("rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(0, handle.tell() - size))
            return handle.read(size)
    except OSError:
        return b""


def read_head(path: Path, size: int = 65536) -> bytes:
    """The first ``size`` bytes of a file; empty when it cannot be read."""
    try:
        with path.open("rb") as handle:
            return handle.read(size)
    except OSError:
        return b""
