"""Prompts that verl gave up on: it logs `Error in _run_prompt`, fills the batch with others, and trains on.

Only the console log knows (verl 0.9.1, trainer/ppo/v1/agent_loop_tq.py). Counted over all attempts.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from monitor.log_parser import Float32, Int64

METRIC = "console/prompt_errors"
CHUNK = 8 << 20
_SEEN = re.compile(rb"(?<![\w/])step:(\d{1,18}) - |(Error in _run_prompt)")


class PromptErrors:
    """The count so far, by the step in which it grew. The ingest thread calls ``advance``."""

    def __init__(self) -> None:
        self.revision = 0
        self.count = 0
        self._offsets: dict[Path, int] = {}
        self._step = 0
        self._by_step: dict[int, int] = {}

    def advance(self, paths: list[Path]) -> bool:
        """Read one chunk of what is new in each console log; True when there is more."""
        more = False
        for path in paths:
            offset = self._offsets.get(path, 0)
            try:
                size = path.stat().st_size
                if size <= offset:
                    continue
                with path.open("rb") as handle:
                    handle.seek(offset)
                    data = handle.read(CHUNK)
            except OSError:
                continue  # the console's own reader says so
            end = data.rfind(b"\n") + 1 or (len(data) if len(data) == CHUNK else 0)
            for match in _SEEN.finditer(data, 0, end):
                if match.group(2):
                    self.count += 1
                    self._by_step[self._step + 1] = self.count
                    self.revision += 1
                else:
                    self._step = int(match.group(1))
            self._offsets[path] = offset + end
            more |= bool(end) and offset + end < size
        return more

    def series(self) -> tuple[Int64, Float32]:
        """Steps (growing) and the count at each."""
        steps = sorted(self._by_step)
        counts = np.array([self._by_step[step] for step in steps], dtype=np.float32)
        return np.array(steps, dtype=np.int64), np.maximum.accumulate(counts)
