"""What people see: a progress bar."""

from __future__ import annotations

import sys
import time


class Bar:
    """A one-line progress bar on stderr, redrawn at most ten times a second."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def update(self, done: int, total: int) -> None:
        """Draw; `done` and `total` in bytes."""
        now = time.monotonic()
        if now - self._last < 0.1 and done < total:
            return
        self._last = now
        share = done / total if total else 1.0
        filled = int(share * 30)
        rest = (now - self._start) * (1 - share) / share if share else 0.0
        end = "\n" if done >= total else ""
        print(
            f"\r[{'#' * filled}{'.' * (30 - filled)}] {share:4.0%} {rest:4.0f} s left",
            end=end,
            file=sys.stderr,
            flush=True,
        )
