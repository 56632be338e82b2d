"""From the record to the figures: overall, by group; the denominator is always every item of the data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from common.evaluation import statistics

QUANTILE = 0.95


@dataclass(slots=True)
class Light:
    """What the figures need of a sample."""

    sample: int
    score: float | None
    right: bool
    answer: str | None
    tokens: int
    truncated: bool
    error: str
    reward_error: str


@dataclass
class Figure:
    """A value with its 95 % interval; `low` and `high` are None where there is none."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass
class Collected:
    """All samples of an evaluation by item, and the items' groups."""

    total_items: int
    n: int
    samples: dict[int, list[Light]] = field(default_factory=dict)
    groups: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    parts: dict[str, list[float]] = field(default_factory=dict)
    scored: bool = False

    def of(self, item: int) -> list[Light]:
        """The item's samples in order."""
        return sorted(self.samples.get(item, []), key=lambda light: light.sample)


def collect(rows: Iterable[dict[str, Any]], total_items: int, n: int) -> Collected:
    """Read a record once."""
    found = Collected(total_items, n)
    for row in rows:
        score = row.get("score")
        light = Light(
            row["sample"],
            float(score) if isinstance(score, int | float) else None,
            bool(row.get("right")),
            row.get("answer"),
            int(row.get("tokens") or 0),
            bool(row.get("truncated")),
            str(row.get("error") or ""),
            str(row.get("reward_error") or ""),
        )
        found.samples.setdefault(row["item"], []).append(light)
        found.scored |= light.score is not None
        for name, value in (row.get("parts") or {}).items():
            if isinstance(value, int | float):
                found.parts.setdefault(name, []).append(float(value))
        if row["sample"] == 0:
            for column, values in (row.get("groups") or {}).items():
                for value in values:
                    found.groups.setdefault((column, value), []).append(row["item"])
    return found


def figures(found: Collected, items: list[int] | None = None) -> list[Figure]:
    """Scores over *items* (default: all). A sample that is missing or failed counts as wrong with score 0."""
    items = list(range(found.total_items)) if items is None else items
    if not found.scored or not items:
        return []
    n, count = found.n, len(items)
    samples = {item: found.of(item) for item in items}
    means = [math.fsum(light.score or 0.0 for light in samples[item]) / n for item in items]
    right = [sum(light.right for light in samples[item]) for item in items]
    shares = [number / n for number in right]
    result = [
        Figure("score" if n == 1 else f"score avg@{n}", _mean(means), *statistics.mean_interval(means)),
        Figure("right" if n == 1 else f"right avg@{n}", _mean(shares), *statistics.share_interval(shares)),
    ]
    if n > 1:
        for k in statistics.powers(n)[1:]:
            values = [statistics.pass_at_k(n, number, k) for number in right]
            result.append(Figure(f"pass@{k}", _mean(values), *statistics.share_interval(values)))
        votes = [
            statistics.maj_at_k([light.answer for light in samples[i]], [light.right for light in samples[i]])
            for i in items
        ]
        result.append(
            Figure(f"maj@{n}", _mean(votes), *statistics.share_interval(votes), "a tie is no majority")
        )
        all_right = [float(number == n) for number in right]
        result.append(Figure(f"all {n} right", _mean(all_right), *statistics.share_interval(all_right)))
    unparsed = sum(light.answer is None and not light.error for item in items for light in samples[item])
    if unparsed < n * count:
        result.append(Figure("no answer found", unparsed / (n * count)))
    return result


def shares(found: Collected) -> list[Figure]:
    """What went wrong or was cut, as shares of all samples, and the lengths of the answers in tokens."""
    total = found.total_items * found.n
    lights = [light for samples in found.samples.values() for light in samples]
    tokens = sorted(light.tokens for light in lights if not light.error)
    result = [
        Figure(
            "truncated", sum(light.truncated for light in lights) / total, note="stopped by --max_new_tokens"
        ),
        Figure(
            "errors", sum(bool(light.error) for light in lights) / total, note="no answer; counted as wrong"
        ),
        Figure(
            "reward errors", sum(bool(light.reward_error) for light in lights) / total, note="counted as 0"
        ),
        Figure("not done", 1 - len(lights) / total),
    ]
    if tokens:
        result.append(Figure("tokens mean", sum(tokens) / len(tokens)))
        result.append(Figure("tokens p95", tokens[min(len(tokens) - 1, int(QUANTILE * len(tokens)))]))
    return result


def part_means(found: Collected) -> list[Figure]:
    """Mean of each numeric part of the reward over the samples that have it."""
    return [Figure(name, _mean(values)) for name, values in sorted(found.parts.items())]


def by_group(found: Collected) -> list[tuple[str, str, int, list[Figure]]]:
    """(column, group, items, figures) per group, largest first within its column."""
    ordered = sorted(found.groups.items(), key=lambda entry: (entry[0][0], -len(entry[1]), entry[0][1]))
    return [(column, group, len(items), figures(found, items)) for (column, group), items in ordered]


def error_counts(found: Collected) -> list[tuple[str, str, int]]:
    """(kind, message, how often), most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    for samples in found.samples.values():
        for light in samples:
            if light.error:
                counts["generation", light.error] += 1
            if light.reward_error:
                counts["reward", light.reward_error] += 1
    return [(kind, message, number) for (kind, message), number in counts.most_common()]


def histogram(found: Collected, bins: int = 10) -> list[tuple[str, int]]:
    """(range, samples) over all scores; one bar per value where there are few values."""
    scores = [
        light.score for samples in found.samples.values() for light in samples if light.score is not None
    ]
    if not scores:
        return []
    values = sorted(set(scores))
    if len(values) <= bins:
        return [(f"{value:g}", scores.count(value)) for value in values]
    low, high = values[0], values[-1]
    width = (high - low) / bins
    counts = [0] * bins
    for score in scores:
        counts[min(bins - 1, int((score - low) / width))] += 1
    return [(f"{low + i * width:.3g} to {low + (i + 1) * width:.3g}", counts[i]) for i in range(bins)]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
