"""What the judge did and cost, counted per training step, in `judge-metrics.jsonl` of the run's folder."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = "judge-metrics.jsonl"
# Always present in a line; failures by kind (failed_<kind>) only where there were some.
COUNTS = (
    "samples",
    "calls",
    "cache_hits",
    "retries",
    "failures",
    "tokens_in",
    "tokens_out",
    "cost",
    "seconds",
    "waited",
)


class Metrics:
    """Counts since the last line; every line adds to those before it, from whatever process or attempt.

    Args:
        folder: the run's folder; None: count, write nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / FILE
        self._since: dict[tuple[int | None, str], Counter[str]] = {}
        self.total: Counter[str] = Counter()

    def add(self, tag: tuple[int | None, str], **counts: float) -> None:
        """Count for one (step, split)."""
        self._since.setdefault(tag, Counter()).update(counts)  # type: ignore[arg-type]
        self.total.update(counts)  # type: ignore[arg-type]

    def flush(self) -> None:
        """Append one line per step and split that changed; each line is one write, so processes do not mix."""
        if self._path is None or not self._since:
            return
        lines = []
        for (step, split), counts in self._since.items():
            kinds = {key: counts[key] for key in sorted(counts) if key.startswith("failed_")}
            record = {
                "time": round(time.time(), 3),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "step": step,
                "split": split,
                **{name: round(counts[name], 6) for name in COUNTS},
                **kinds,
            }
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, "".join(lines).encode())
        finally:
            os.close(descriptor)
        self._since.clear()


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's file; one still being written is left out."""
    with (folder / FILE).open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def totals(folder: Path) -> dict[str, float]:
    """Sums over all lines of a run."""
    result: Counter[str] = Counter()
    for line in read_metrics(folder):
        result.update({key: line[key] for key in line if key in COUNTS or key.startswith("failed_")})
    return dict(result)
