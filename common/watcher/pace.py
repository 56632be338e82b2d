"""How fast a run steps, when it is late, and when it will be done. Pure: times are given, no clock is read."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from math import lcm
from statistics import median

from common.watcher.settings import StallLimits

REMEMBERED = 200
# What is done around a step beside training it: the frequencies that are due, or one of these.
Kind = frozenset[int]
PLAIN: Kind = frozenset()
_LAST = -2
# Between an attempt's first two lines: compiling takes its time, and the first may be no trained step.
_FIRST: Kind = frozenset({-1})


@dataclass
class Pace:
    """Feed it each new step with the time at which it was seen.

    Args:
        began: time of the launch.
        limits: see watch.yaml.
        every: TEST_FREQ, SAVE_FREQ and the like: at their multiples a step takes longer than usual; 0 = never.
        total: the last step, which validates and saves too; 0 = not known.
        logs_first: the trainer logs a step and then validates and saves (SFT, DPO), not the other way round (RL).
    """

    began: float
    limits: StallLimits
    every: tuple[int, ...] = ()
    total: int = 0
    logs_first: bool = False
    step: int = 0
    seen: float = 0.0
    steps_seen: int = 0
    times: dict[Kind, deque[float]] = field(default_factory=dict)

    def add(self, step: int, now: float) -> None:
        """A new step is in the log."""
        if step <= self.step and self.steps_seen:
            return
        if self.steps_seen:
            kinds = map(self._after, range(self.step, step))
            self._keep(now - self.seen, Counter(kinds if self.steps_seen > 1 else {_FIRST: step - self.step}))
        self.step, self.seen = step, now
        self.steps_seen += 1

    def _keep(self, seconds: float, kinds: Counter[Kind]) -> None:
        """Several steps at one look share its time; what is over a usual step's is the extra work's."""
        plain, usual = kinds.pop(PLAIN, 0), self.step_seconds or 0.0
        if not kinds:
            kinds, plain = Counter({PLAIN: plain}), 0
        if len(kinds) == 1:
            ((kind, count),) = kinds.items()
            taken = (seconds - plain * usual) / count
            self.times.setdefault(kind, deque(maxlen=REMEMBERED)).append(
                max(taken, usual) if plain else taken
            )

    def _due(self, step: int) -> Kind:
        if self.total and step >= self.total:
            return frozenset({*self._frequencies(), _LAST})
        return frozenset(freq for freq in self._frequencies() if step > 0 and step % freq == 0)

    def _frequencies(self) -> Iterator[int]:
        return (freq for freq in self.every if freq > 0)

    def _after(self, step: int) -> Kind:
        """What is done between the lines of *step* and the next one."""
        return self._due(step if self.logs_first else step + 1)

    @property
    def step_seconds(self) -> float | None:
        """Median seconds of a step that neither validates nor saves; of the quickest kind where there is no such."""
        if PLAIN in self.times:
            return median(self.times[PLAIN])
        return min(map(median, self.times.values()), default=None)

    def limit(self) -> float:
        """Seconds after the newest step (the launch, before the first) at which the run counts as stuck."""
        usual = self.step_seconds
        if usual is None:
            return self.limits.start
        allowed = max(self.limits.least, self.limits.factor * usual)
        kind = self._after(self.step)
        if kind:
            slow = self.times.get(kind)
            allowed = max(allowed, self.limits.factor * median(slow) if slow else self.limits.long)
        return allowed

    def _since(self, now: float) -> float:
        return now - (self.seen if self.steps_seen else self.began)

    def late_by(self, now: float) -> float | None:
        """Seconds since anything happened when that is over the limit, else None."""
        since = self._since(now)
        return since if since > self.limit() else None

    def until_late(self, now: float) -> float:
        """Seconds until `late_by` would say so; below 0 when it does."""
        return self.limit() - self._since(now)

    def eta(self, now: float) -> float | None:
        """Seconds to the end of the last step and its work; None where it is not known."""
        usual = self.step_seconds
        if usual is None or not self.total:
            return None
        counts = self._count(self.step + (not self.logs_first), self.total - 1)
        left = sum(count * self._expected(kind, usual) for kind, count in counts.items())
        last = self._expected(self._due(self.total), usual)
        if self.logs_first:
            left += last - usual
        elif self.step < self.total:
            left += last
        return max(0.0, left - (now - self.seen))

    def _expected(self, kind: Kind, usual: float) -> float:
        """Seconds of a step of *kind*; where none was timed, of the slowest that does part of its work."""
        known = [kind] if kind in self.times else [other for other in self.times if other <= kind]
        return max((median(self.times[one]) for one in known), default=usual)

    def _count(self, first: int, last: int) -> dict[Kind, int]:
        """How many of the steps *first* to *last* are of which kind. By arithmetic: there may be a million."""
        found: dict[Kind, int] = {}
        frequencies = set(self._frequencies())
        for size in range(len(frequencies), -1, -1):
            for kind in map(frozenset, combinations(frequencies, size)):
                period = lcm(*kind)
                multiples = max(0, last // period - (first - 1) // period)
                found[kind] = multiples - sum(count for other, count in found.items() if other > kind)
        return found


def words(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
