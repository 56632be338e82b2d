"""Read ``judge-metrics.jsonl`` (what an API judge did and cost, written by common/judge) as it grows.

Every line counts since the line before it, whatever process wrote it; so the lines of a step are added up.
"""

from __future__ import annotations

import numpy as np
import orjson

from monitor.json_log import JsonLog
from monitor.log_parser import Float32, Int64

_COUNTS = (
    "samples",
    "calls",
    "cache_hits",
    "retries",
    "failures",
    "tokens_in",
    "tokens_out",
    "cost",
    "seconds",
)


class JudgeLog(JsonLog):
    """Sums per step. Columns are ``judge/<count>`` and, of validation, ``judge/val/<count>``."""

    def _clear(self) -> None:
        self._sums: dict[int, dict[str, float]] = {}

    def _take(self, line: bytes) -> None:
        row = orjson.loads(line)
        step = row["step"]
        if step is None:  # counted outside of a step (a trial run of the judge)
            return
        split = "" if row.get("split") in ("", None, "train") else f"{row['split']}/"
        sums = self._sums.setdefault(int(step), {})
        for name in _COUNTS:
            key = f"judge/{split}{name}"
            sums[key] = sums.get(key, 0.0) + float(row.get(name) or 0.0)

    def by_step(self) -> tuple[Int64, dict[str, Float32]]:
        """Steps and columns of shape [steps]: the counts, the share of failures, seconds per call."""
        steps = sorted(self._sums)
        names = dict.fromkeys(name for step in steps for name in self._sums[step])
        columns = {
            name: np.array([self._sums[step].get(name, np.nan) for step in steps], dtype=np.float32)
            for name in names
        }
        with np.errstate(divide="ignore", invalid="ignore"):
            for name in [name for name in names if name.endswith("/samples")]:
                base = name.removesuffix("samples")
                columns[f"{base}failure_share"] = columns[f"{base}failures"] / columns[name]
                columns[f"{base}seconds_per_call"] = columns[f"{base}seconds"] / columns[f"{base}calls"]
        return np.array(steps, dtype=np.int64), columns
