"""Worker processes for conversion: plain subprocesses with pipes, fed and read by one thread each.

Not `multiprocessing`: its spawn and forkserver methods import the caller's main script again, and fork copies
a process whose libraries may run threads. A user's script that calls `json_to_parquet` needs no main guard.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from common.data_utils.chunkwork import ChunkResult, work
from common.data_utils.readers import Chunk
from common.data_utils.records import Plan

_LENGTH = 8
_ROOT = Path(__file__).resolve().parents[2]


def send(stream: IO[bytes], value: Any) -> None:
    """Write one length-prefixed object."""
    data = pickle.dumps(value, protocol=5)
    stream.write(len(data).to_bytes(_LENGTH, "little"))
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read one object.

    Raises:
        EOFError: the other side is gone.
    """
    header = stream.read(_LENGTH)
    if len(header) < _LENGTH:
        raise EOFError
    return pickle.loads(stream.read(int.from_bytes(header, "little")))


def _start() -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "common.data_utils.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )


class Pool:
    """Context manager; with `size` 0 the work is done in this process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._workers: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Pool:
        for _ in range(self.size):
            worker = _start()
            self._workers.append(worker)
            self._idle.put(worker)
        if self.size:
            self._threads = ThreadPoolExecutor(self.size)
        return self

    def __exit__(self, *problem: Any) -> None:
        for worker in self._workers:
            if problem[0] is not None:
                worker.kill()
            assert worker.stdin is not None and worker.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()

    def _ask(self, job: tuple[Chunk, Plan, str, bool]) -> ChunkResult:
        worker = self._idle.get()
        assert worker.stdin is not None and worker.stdout is not None
        try:
            send(worker.stdin, job)
            result = receive(worker.stdout)
        except (EOFError, BrokenPipeError):
            raise RuntimeError(
                f"a conversion worker died (exit code {worker.wait()}); was memory short?"
            ) from None
        self._idle.put(worker)
        if isinstance(result, BaseException):
            raise result
        return result  # type: ignore[no-any-return]

    def run(self, chunks: Iterable[Chunk], plan: Plan, label: str, want_keys: bool) -> Iterator[ChunkResult]:
        """Results in the order of the chunks; at most two per worker are under way, which bounds memory."""
        if self._threads is None:
            for chunk in chunks:
                yield work(chunk, plan, label, want_keys)
            return
        waiting: deque[Future[ChunkResult]] = deque()
        for chunk in chunks:
            waiting.append(self._threads.submit(self._ask, (chunk, plan, label, want_keys)))
            if len(waiting) > self.size:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
