"""What looks wrong, as observations: pure functions over series, shared by the panel and the run watcher.

A rule (see ``rules`` in monitor/config.yaml) names metrics, a test and its numbers; ``evaluate`` applies it
to the first of its metrics that a run has. Observations describe; they do not judge: on these signals false
alarms are common, and reward hacking shows late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monitor.log_parser import Float32, Int64
from monitor.series import Float64

# Longer series are judged by their beginning (for "since the first level") and their newest part.
HEAD_POINTS, TAIL_POINTS = 500, 5_000

SeriesOf = Callable[[str], tuple[Int64, Float32]]


class RuleError(ValueError):
    """A rule that cannot be used; the text names the rule and what is wrong."""


@dataclass(frozen=True)
class Rule:
    """One observation to look for.

    ``window``: points that are averaged before testing. ``hold``: how many averaged points in a row must show
    it. ``value``: the threshold, whose meaning is the test's (see ``TESTS``).
    """

    id: str
    metrics: tuple[str, ...]
    test: str
    value: float
    window: int = 1
    hold: int = 1
    severity: str = "warn"
    says: Mapping[str, str] = field(default_factory=dict)
    advice: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """A rule that holds now: on which metric, since which step, with which value there and now."""

    rule: Rule
    metric: str
    since: int
    value: float
    count: int = 0

    def sentence(self, lang: str) -> str:
        """The rule's text in ``lang`` (en where it has none) with its numbers filled in."""
        text = self.rule.says.get(lang) or self.rule.says["en"]
        return text.format(
            metric=self.metric,
            since=self.since,
            value=f"{self.value:.4g}",
            percent=f"{100 * self.value:.0f} %",
            limit=f"{self.rule.value:g}",
            count=self.count,
            window=self.rule.window,
        )

    def advice(self, lang: str) -> str:
        """Which knob to try."""
        return self.rule.advice.get(lang) or self.rule.advice.get("en", "")


def rolling_mean(values: Float64, window: int) -> Float64:
    """Mean of the last ``window`` values at each position (fewer at the beginning)."""
    if window <= 1 or len(values) <= 1:
        return values
    total = np.concatenate(([0.0], np.cumsum(values)))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - window, 0)
    return (total[ends] - total[begins]) / (ends - begins)


def _ongoing(holds: np.ndarray[Any, np.dtype[np.bool_]], hold: int) -> int | None:
    """Where the unbroken stretch of True that reaches the end begins; None when shorter than ``hold``."""
    if not len(holds) or not holds[-1]:
        return None
    broken = np.flatnonzero(~holds)
    begin = int(broken[-1]) + 1 if len(broken) else 0
    return begin if len(holds) - begin >= hold else None


@dataclass(frozen=True)
class _Hit:
    at: int
    value: float
    count: int = 0


def _above(rule: Rule, values: Float64) -> _Hit | None:
    smooth = rolling_mean(values, rule.window)
    at = _ongoing(smooth > rule.value, rule.hold)
    return None if at is None else _Hit(at, float(smooth[-1]))


def _below(rule: Rule, values: Float64) -> _Hit | None:
    smooth = rolling_mean(values, rule.window)
    at = _ongoing(smooth < rule.value, rule.hold)
    return None if at is None else _Hit(at, float(smooth[-1]))


def _collapsed(rule: Rule, values: Float64) -> _Hit | None:
    if len(values) < 2 * rule.window:
        return None
    early = float(np.mean(values[: rule.window]))
    smooth = rolling_mean(values, rule.window)
    at = _ongoing(smooth < rule.value * early, rule.hold) if early > 0 else None
    return None if at is None else _Hit(at, float(smooth[-1]))


def _slower(rule: Rule, values: Float64) -> _Hit | None:
    if len(values) < 3 * rule.window:
        return None
    usual = float(np.median(values[: -rule.window]))
    smooth = rolling_mean(values, rule.window)
    at = _ongoing(smooth < (1.0 - rule.value) * usual, 1) if usual > 0 else None
    return None if at is None else _Hit(at, float(smooth[-1]))


def _rising(rule: Rule, values: Float64) -> _Hit | None:
    if len(values) < 2 * rule.window:
        return None
    early = float(np.mean(values[: rule.window]))
    smooth = rolling_mean(values, rule.window)
    at = _ongoing(smooth > early + rule.value, rule.hold)
    return None if at is None else _Hit(at, float(smooth[-1]))


def _no_new_best(rule: Rule, values: Float64) -> _Hit | None:
    smooth = rolling_mean(values, rule.window)
    if len(smooth) <= rule.hold:
        return None
    spread = float(np.ptp(smooth))
    best = int(np.flatnonzero(smooth >= smooth.max() - rule.value * spread)[0])
    return (
        _Hit(best, float(smooth[best]), len(smooth) - 1 - best)
        if len(smooth) - 1 - best >= rule.hold
        else None
    )


def _above_best(rule: Rule, values: Float64) -> _Hit | None:
    smooth = rolling_mean(values, rule.window)
    at = _ongoing(smooth > (1.0 + rule.value) * np.minimum.accumulate(smooth), rule.hold)
    return None if at is None else _Hit(at, float(smooth[-1]))


def _constant(rule: Rule, values: Float64) -> _Hit | None:
    if len(values) < rule.hold:
        return None
    at = _ongoing(np.abs(values - values[-1]) <= rule.value, rule.hold)
    return None if at is None else _Hit(at, float(values[-1]))


def _spikes(rule: Rule, values: Float64) -> _Hit | None:
    begin = max(0, len(values) - rule.window)
    recent = values[begin:]
    if len(recent) < 20:
        return None
    usual = float(np.median(recent))
    high = np.flatnonzero(recent > rule.value * usual) if usual > 0 else np.empty(0, dtype=int)
    if len(high) < rule.hold:
        return None
    return _Hit(begin + int(high[0]), float(recent[high].max()), len(high))


TESTS: dict[str, Callable[[Rule, Float64], _Hit | None]] = {
    "above": _above,  # the average is above value
    "below": _below,  # the average is below value
    "collapsed": _collapsed,  # the average fell under value (a share) of its first window
    "slower": _slower,  # the average is a share of value or more under its usual level
    "rising": _rising,  # the average is value above its first window
    "no_new_best": _no_new_best,  # no average above the best so far (by value of the spread) for hold points
    "above_best": _above_best,  # the average is a share of value or more above its lowest so far
    "constant": _constant,  # within value of the newest for hold points
    "spikes": _spikes,  # hold or more points over value times the median, among the last window
    "not_finite": lambda rule, values: None,  # NaN or inf anywhere; handled before the others
}
_KEYS = {"id", "metrics", "test", "value", "window", "hold", "severity", "says", "try"}


def load_rules(entries: Iterable[Any]) -> list[Rule]:
    """Rules from a config's list of mappings.

    Raises:
        RuleError: an entry is incomplete, has an unknown key or an unknown test.
    """
    rules: list[Rule] = []
    for position, entry in enumerate(entries, 1):
        name = entry.get("id", f"number {position}") if isinstance(entry, Mapping) else f"number {position}"
        if not isinstance(entry, Mapping):
            raise RuleError(f"rule {name}: must be a mapping")
        if unknown := sorted(set(entry) - _KEYS):
            raise RuleError(f"rule {name}: unknown key {unknown[0]!r}; known: {', '.join(sorted(_KEYS))}")
        if missing := [key for key in ("id", "metrics", "test", "says") if key not in entry]:
            raise RuleError(f"rule {name}: {missing[0]!r} is missing")
        if entry["test"] not in TESTS:
            raise RuleError(f"rule {name}: unknown test {entry['test']!r}; known: {', '.join(TESTS)}")
        if "en" not in entry["says"]:
            raise RuleError(f"rule {name}: 'says' needs a text for en")
        try:
            rules.append(
                Rule(
                    id=str(entry["id"]),
                    metrics=tuple(map(str, entry["metrics"])),
                    test=entry["test"],
                    value=float(entry.get("value", 0.0)),
                    window=max(1, int(entry.get("window", 1))),
                    hold=max(1, int(entry.get("hold", 1))),
                    severity=str(entry.get("severity", "warn")),
                    says=dict(entry["says"]),
                    advice=dict(entry.get("try", {})),
                )
            )
        except (TypeError, ValueError) as error:
            raise RuleError(f"rule {name}: {error}") from error
    return rules


def check(rule: Rule, metric: str, steps: Int64, values: Float32) -> Observation | None:
    """Apply one rule to one series (shape [points] each); None when it does not hold now."""
    if rule.test == "not_finite":
        broken = np.flatnonzero(~np.isfinite(values))
        if not len(broken):
            return None
        return Observation(rule, metric, int(steps[broken[0]]), float(values[broken[0]]), len(broken))
    if len(values) > HEAD_POINTS + TAIL_POINTS:
        values = np.concatenate((values[:HEAD_POINTS], values[-TAIL_POINTS:]))
        steps = np.concatenate((steps[:HEAD_POINTS], steps[-TAIL_POINTS:]))
    finite = np.isfinite(values)
    hit = TESTS[rule.test](rule, values[finite].astype(np.float64)) if finite.any() else None
    if hit is None:
        return None
    return Observation(rule, metric, int(steps[finite][hit.at]), hit.value, hit.count)


def evaluate(rules: Iterable[Rule], metrics: Iterable[str], series: SeriesOf) -> list[Observation]:
    """All rules over one run. A rule's metric ending in ``*`` means every metric with that beginning."""
    names = list(metrics)
    have = set(names)
    found: list[Observation] = []
    for rule in rules:
        for wanted in rule.metrics:
            matches = (
                [n for n in names if n.startswith(wanted[:-1])]
                if wanted.endswith("*")
                else [wanted] * (wanted in have)
            )
            hits = [hit for name in matches if (hit := check(rule, name, *series(name))) is not None]
            found += sorted(hits, key=lambda hit: hit.since)[:3]
            if matches and not wanted.endswith("*"):
                break
    return found
