"""How the browser's memory grows while an open page follows growing runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import CDPSession, Page

from benchmarks import monitor_logs
from benchmarks.monitor_panel import run_files

WARM_UP = 20


def heap_mb(session: CDPSession) -> float:
    """JavaScript heap in use after a collection, MB."""
    session.send("HeapProfiler.collectGarbage")
    return float(session.send("Runtime.getHeapUsage")["usedSize"]) / 2**20


def heap_growth(
    tab: Page, logs: Path, steps: int, refreshes: int, pause: Callable[[int], None]
) -> tuple[float, float]:
    """Heap (MB) after a warm-up and how much it grew over ``refreshes``, each with a new line in every run.

    ``steps`` is the runs' length so far; ``pause(step)`` waits until the page has that step.
    """
    session = tab.context.new_cdp_session(tab)

    def grow(first: int, count: int) -> None:
        for step in range(first, first + count):
            for path in run_files(logs):
                monitor_logs.append_line(path, step)
            pause(step)

    grow(steps + 1, WARM_UP)
    begin = heap_mb(session)
    grow(steps + 1 + WARM_UP, refreshes)
    return begin, heap_mb(session) - begin
