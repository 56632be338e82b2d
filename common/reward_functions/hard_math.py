"""Math-verify behind a small pool of killable processes: safe in threads, bounded in time and memory."""

from __future__ import annotations

import atexit
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import ClassVar

from common.reward_functions.errors import RewardError

WORKERS = 2  # per reward process; verl starts several such processes
# Shares of the time limit: when the worker's own alarm rings, and when it is killed for not having stopped.
ALARM, KILL = 0.8, 0.95
START_LIMIT = 120.0  # seconds to import sympy on a busy machine
RECYCLE = 2000  # requests after which a worker is replaced: sympy's caches grow


class UndecidedError(Exception):
    """Math-verify gave no verdict: out of time, out of memory, or an error of its own."""


class _Worker:
    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.connection = connection
        self.stream = connection.makefile("rw", encoding="utf-8", newline="\n")
        self.pid = pid
        self.served = 0

    def close(self) -> None:
        """End the worker, working or not."""
        self.connection.close()
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


class HardMath:
    """A pool: one process that imported math-verify, and up to `workers` forks of it, started when needed."""

    _shared: ClassVar[HardMath | None] = None
    _shared_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, workers: int = WORKERS) -> None:
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._idle.put(None)
        self._parent: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @classmethod
    def shared(cls) -> HardMath:
        """The pool of this process; a forked child gets its own."""
        with cls._shared_lock:
            if cls._shared is None or cls._shared._pid != os.getpid():
                cls._shared = cls()
                atexit.register(cls._shared.close)
            return cls._shared

    def equal(self, gold: str, answer: str, time_limit: float) -> bool:
        """Whether math-verify calls the two equal; waits for a free worker, then `time_limit` seconds.

        Raises:
            UndecidedError: no verdict in time, or math-verify failed on this pair.
            RewardError: math-verify is not installed.
        """
        worker = self._idle.get()
        try:
            if worker is None:
                worker = self._fork()
            verdict, error = self._ask(worker, gold, answer, time_limit)
            worker.served += 1
            if worker.served >= RECYCLE:
                worker.close()
                worker = None
        except (OSError, ValueError) as failure:
            if worker is not None:
                worker.close()
                worker = None
            raise UndecidedError("out of time") from failure
        finally:
            self._idle.put(worker)
        if verdict is None:
            raise UndecidedError(error)
        return verdict

    def _ask(self, worker: _Worker, gold: str, answer: str, limit: float) -> tuple[bool | None, str]:
        worker.connection.settimeout(KILL * limit)
        worker.stream.write(json.dumps([gold, answer, ALARM * limit]) + "\n")
        worker.stream.flush()
        line = worker.stream.readline()
        if not line:
            raise ConnectionError("the worker died")
        verdict, error = json.loads(line)
        return verdict, error

    def _fork(self) -> _Worker:
        with self._lock:
            if self._parent is None or self._parent.poll() is not None:
                self._start()
            assert self._control is not None
            mine, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(self._control, [b"w"], [theirs.fileno()])
            return _Worker(mine, int(self._line()))

    def _start(self) -> None:
        if self._control is not None:
            self._control.close()
        self._control, theirs = socket.socketpair()
        self._control.settimeout(START_LIMIT)
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        with theirs, tempfile.TemporaryFile() as errors:
            self._parent = subprocess.Popen(
                [sys.executable, "-m", "common.reward_functions.math_worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=root,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            theirs.close()
            try:
                self._line()
            except OSError as failure:
                self._parent.kill()
                self._parent.wait()
                errors.seek(0)
                said = errors.read().decode("utf-8", "replace").strip().splitlines()
                raise RewardError(
                    f"math-verify could not be started: {said[-1] if said else failure}; "
                    "is it installed (pip install 'math-verify[antlr4_9_3]')?"
                ) from failure

    def _line(self) -> str:
        assert self._control is not None
        text = b""
        while not text.endswith(b"\n"):
            byte = self._control.recv(1)
            if not byte:
                raise ConnectionError("the math process ended")
            text += byte
        return text.decode().strip()

    def close(self) -> None:
        """End every process of the pool; the next call starts anew."""
        if self._pid != os.getpid():
            return
        with self._lock:
            for _ in range(self._idle.qsize()):
                worker = self._idle.get_nowait()
                if worker is not None:
                    worker.close()
                self._idle.put(None)
            if self._control is not None:
                self._control.close()
                self._control = None
            if self._parent is not None:
                self._parent.kill()
                self._parent.wait()
                self._parent = None
