"""Keep an index of all runs under a folder up to date: one thread reads, everybody else looks.

``Collector.start`` begins with the newest run and lets a second process parse the other big logs, so that the
first chart does not wait for the rest. Request handlers call ``runs`` and read the runs' published arrays.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from monitor.discover import Scanner
from monitor.indexer import Helper
from monitor.run import Run
from monitor.tail import LogTail

HELPER_FROM_BYTES = 16 << 20
TICK_BUDGET_SECONDS = 0.25


class Collector:
    """The runs under ``root`` (a folder, or one log file)."""

    def __init__(
        self, root: Path, refresh_seconds: float = 2.0, rescan_seconds: float = 5.0, cache: Path | None = None
    ) -> None:
        self.scanner = Scanner(root)
        self.root = self.scanner.root
        self.refresh_seconds = refresh_seconds
        self.rescan_seconds = rescan_seconds
        self.cache = cache
        self.notes: list[str] = []
        self.first_ready = threading.Event()
        self.complete = threading.Event()
        self._runs: dict[str, Run] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._next_scan = 0.0
        self.failure = ""

    def runs(self) -> list[Run]:
        """All runs, the one written last first."""
        return list(self._runs.values())

    def run(self, run_id: str) -> Run | None:
        return self._runs.get(run_id)

    def start(self) -> None:
        """Begin reading in the background."""
        self._thread = threading.Thread(target=self._loop, daemon=True, name="ingest")
        self._thread.start()

    def stop(self) -> None:
        """End the thread and the second process."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def load_all(self) -> None:
        """Read everything now, in this thread (for ``--check`` and tests)."""
        self._scan()
        for run in self.runs():
            self._small_files(run)
            changed = True
            while changed:  # a console log may turn out to be needed only after the metrics were read
                changed = sum(self._read(tail) for tail in run.tails() if tail.refresh()) > 0
            for log in (run.gpu, run.judge):
                while log.advance():
                    pass
            while run.advance_prompt_errors():
                pass
            for stats in (run.samples, run.validation):
                stats.advance(lambda: True)
        self.complete.set()

    # ---- the ingest thread ------------------------------------------------------------------------

    def _loop(self) -> None:
        helper: Helper | None = None
        try:
            self._scan()
            helper = self._first_load()
        except Exception as error:  # the thread must live on: what failed is shown in the page
            self.failure = f"reading the logs failed: {type(error).__name__}: {error}"
        finally:
            if helper is not None:
                helper.close()
            self.first_ready.set()
            self.complete.set()
        while not self._stop.wait(self.refresh_seconds / 2):
            try:
                self.tick()
                self.failure = ""
            except Exception as error:  # as above
                self.failure = f"reading the logs failed: {type(error).__name__}: {error}"

    def _scan(self) -> None:
        found = self.scanner.scan()
        self._next_scan = time.monotonic() + self.rescan_seconds
        runs: dict[str, Run] = {}
        for files in found.runs:
            run = self._runs.get(files.id)
            if run is None:
                run = Run(files)
            else:
                run.update_files(files)
            runs[files.id] = run
        self.notes = found.notes
        self._runs = dict(sorted(runs.items(), key=lambda item: item[1].written, reverse=True))

    def _read(self, tail: LogTail, budget: Callable[[], bool] = lambda: True) -> bool:
        if not tail.cache_checked:
            tail.load_cache(self.cache)
            if tail.index.offset:
                tail.refresh()
        changed = tail.advance(budget)
        if changed:
            tail.save_cache(self.cache)
        return changed

    def _small_files(self, run: Run) -> bool:
        changed = run.refresh_manifest()
        return run.refresh_facts() or changed

    def _first_load(self) -> Helper | None:
        """What lies there at start: the newest run first, big files shared with a second process."""
        runs = self.runs()
        for run in runs:
            self._small_files(run)
        waiting: deque[LogTail] = deque()
        for run in runs:
            for tail in run.tails():
                if tail.refresh():
                    tail.load_cache(self.cache)
                    waiting.append(tail)
        big = sum(tail.behind > HELPER_FROM_BYTES for tail in waiting)
        helper = Helper(self.cache) if self.cache is not None and big > 1 else None
        while (waiting or (helper and helper.busy)) and not self._stop.is_set():
            if not waiting:
                assert helper is not None
                self._collect(helper, waiting, wait=0.05)
                continue
            tail = waiting.popleft()
            if helper is None:
                self._read(tail)
            else:
                self._collect(helper, waiting)
                self._read(tail, partial(self._collect, helper, waiting))
            self.first_ready.set()
        return helper

    def _collect(self, helper: Helper, waiting: deque[LogTail], wait: float = 0.0) -> bool:
        """Take over what the helper has parsed and give it the last big file. Always True (a read budget)."""
        done = helper.poll(wait)
        if done is not None and not done.load_cache(self.cache):
            waiting.append(done)  # the helper failed on it: read it here
        if helper.busy is None:
            big = [tail for tail in waiting if tail.behind > HELPER_FROM_BYTES and tail is not done]
            if big and helper.give(big[-1]):
                waiting.remove(big[-1])
        return not self._stop.is_set()

    def tick(self) -> None:
        """One look at everything: new lines first, then samples as far as the time budget goes."""
        began = time.monotonic()
        if began >= self._next_scan:
            self._scan()

        def budget() -> bool:
            return time.monotonic() - began < TICK_BUDGET_SECONDS

        now = time.time()
        for run in self.runs():
            before = run.revision
            self._small_files(run)
            for tail in run.tails():
                if tail.refresh():
                    self._read(tail, budget)
            run.gpu.advance()
            run.judge.advance()
            run.advance_prompt_errors()
            if run.revision != before:
                run.observe(now)
        for run in self.runs():
            for stats in (run.samples, run.validation):
                stats.advance(budget)
