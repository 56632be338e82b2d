"""Parse big logs in a second process at start, so that the page answers while they are read.

    python -m monitor.indexer CACHE_FOLDER

Reads ``kind<TAB>path`` lines, parses each file, stores its index in the cache and answers with the same line.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

from monitor.tail import LogTail


class Helper:
    """The second process, seen from the panel. One file at a time; ``poll`` returns what is done."""

    def __init__(self, cache: Path) -> None:
        root = Path(__file__).resolve().parents[1]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "monitor.indexer", str(cache)],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._done: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True, name="indexer-replies")
        self._reader.start()
        self.busy: LogTail | None = None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._done.put(line.rstrip("\n"))
        self._done.put(None)

    def give(self, tail: LogTail) -> bool:
        """Hand over a file; False when the process is gone (the panel then reads it itself)."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{tail.kind}\t{tail.path}\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            return False
        self.busy = tail
        return True

    def poll(self, wait: float = 0.0) -> LogTail | None:
        """The file that is done now, if any; a process that died hands its file back unread."""
        if self.busy is None:
            return None
        try:
            self._done.get(timeout=wait) if wait else self._done.get_nowait()
        except queue.Empty:
            return None
        done, self.busy = self.busy, None
        return done

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(OSError):  # it is gone already
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("usage: python -m monitor.indexer CACHE_FOLDER", file=sys.stderr)
        return 2
    os.nice(5)  # the browser that shows the first chart, and any training on this host, go first
    gc.disable()  # parsed rows are freed by reference count; collecting costs a third of the time
    cache = Path(argv[0])
    for line in sys.stdin:
        kind, _, path = line.rstrip("\n").partition("\t")
        tail = LogTail(Path(path), kind)
        tail.refresh()
        tail.advance()
        tail.save_cache(cache)
        print(line.rstrip("\n"), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
