"""What a quality check reports: findings with the rows they concern, and statistics."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

SEVERITIES = ("error", "warning", "info")
KEPT_ROWS = 1000


@dataclass(frozen=True)
class Place:
    """A row of a source file; `row` follows the counting rule of its file type."""

    file: str
    row: int


@dataclass
class Finding:
    """One kind of problem. `rows` holds the first `KEPT_ROWS` places, `count` all of them."""

    code: str
    severity: str
    message: str
    count: int = 0
    rows: list[Place] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def add(self, place: Place, example: str = "") -> None:
        """Note one more row."""
        self.count += 1
        if len(self.rows) < KEPT_ROWS:
            self.rows.append(place)
        if example and len(self.examples) < 3:
            self.examples.append(example)

    def where(self, shown: int = 20) -> str:
        """The first rows, for people: `rows 3, 7, 9 of a.jsonl`."""
        by_file: dict[str, list[int]] = {}
        for place in self.rows[:shown]:
            by_file.setdefault(place.file, []).append(place.row)
        text = "; ".join(
            f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows))} of {file}"
            for file, rows in by_file.items()
        )
        return text + (f" and {self.count - shown} more" if self.count > shown else "")


@dataclass
class Histogram:
    """Counts of whole numbers in equal bins. `edges` has one entry more than `counts`."""

    name: str
    edges: list[int]
    counts: list[int]
    mean: float
    longest: int
    percentiles: dict[str, int]
    limit: int | None = None


@dataclass
class Report:
    """Everything a check found. Training may start when no finding is an error."""

    task: str
    sources: list[dict[str, Any]]
    rows_in: int
    rows_ok: int
    findings: list[Finding]
    stats: dict[str, Any]
    histograms: list[Histogram]
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether training may start."""
        return not any(finding.severity == "error" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"ok": self.ok, **asdict(self)}


def histogram(name: str, values: list[int], limit: int | None = None, bins: int = 30) -> Histogram:
    """Bins over `values` (not empty)."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    width = max(1, -(-(high - low + 1) // bins))
    counts = [0] * ((high - low) // width + 1)
    for value in ordered:
        counts[(value - low) // width] += 1
    edges = [low + width * position for position in range(len(counts) + 1)]
    marks = {
        f"p{share}": ordered[min(len(ordered) - 1, share * len(ordered) // 100)] for share in (50, 90, 95, 99)
    }
    return Histogram(name, edges, counts, sum(ordered) / len(ordered), high, marks, limit)
