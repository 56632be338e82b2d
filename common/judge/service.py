"""Judges for code on any thread or event loop: each lives on an event loop thread of its own.

verl's manager awaits rewards on one loop, a composite of rewards opens a loop per sample, the evaluator has its own.
Concurrency and pace must hold over all of them, so everything of one judge happens on one thread.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import json
import os
import threading
from collections import deque
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from common.judge.groups import Groups
from common.judge.judge import Judge
from common.judge.settings import Settings, load_settings

T = TypeVar("T")

FLUSH_SECONDS = 2.0
# max_failure_share is judged over so many judgements.
WINDOW = 100
_CLOSE_SECONDS = 10.0
_SERVICES: dict[tuple[Any, ...], Service] = {}
_LOCK = threading.Lock()


class Service:
    """A judge on its thread, with the groups that the policy `drop` needs.

    Raises:
        JudgeError: the settings cannot be used (key, template).
    """

    def __init__(self, settings: Settings, run_dir: Path | None = None) -> None:
        self.settings = settings
        self.outcomes: deque[bool] = deque(maxlen=WINDOW)  # True: failed
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()
        self._flusher: asyncio.Task[None] | None = None
        try:
            self.judge, self.groups = self.submit(self._make(run_dir)).result()
        except BaseException:
            self._stop()
            raise
        atexit.register(self.close)

    async def _make(self, run_dir: Path | None) -> tuple[Judge, Groups]:
        return Judge(self.settings, run_dir), Groups(self.settings.drop_wait)

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the judge's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the judge's loop and await it on the caller's."""
        return await asyncio.wrap_future(self.submit(work))

    def flush_soon(self) -> None:
        """Write counts and judgements within `FLUSH_SECONDS`; called on the judge's loop."""
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.ensure_future(self._flush_later())

    def flush(self) -> None:
        """Write counts and judgements now; for other threads than the judge's."""
        self.submit(self._flush_later(0.0)).result()

    async def _flush_later(self, seconds: float = FLUSH_SECONDS) -> None:
        await asyncio.sleep(seconds)
        self.judge.flush()

    def close(self) -> None:
        """Write what is pending and end the thread; safe to call twice."""
        atexit.unregister(self.close)
        if not self._thread.is_alive() or self._loop.is_closed():
            return
        try:
            self.submit(self._end()).result(_CLOSE_SECONDS)
        finally:
            self._stop()

    async def _end(self) -> None:
        if self._flusher is not None:
            self._flusher.cancel()
        await self.judge.close()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)
        self._loop.close()


def shared_service(config: str, changes: Mapping[str, Any] | None = None, run_dir: str = "") -> Service:
    """The one service of this process for a configuration file, changes to it, and a run folder.

    Raises:
        JudgeError: the configuration cannot be used.
    """
    # The process id: a forked child has no thread of its parent's.
    key = (os.getpid(), config, json.dumps(dict(changes or {}), sort_keys=True, default=str), run_dir)
    with _LOCK:
        if key not in _SERVICES:
            folder = Path(run_dir) if run_dir else None
            _SERVICES[key] = Service(load_settings(config, changes), folder)
        return _SERVICES[key]
