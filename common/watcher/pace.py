"""How fast a run steps, when it is late, and when it will be done. Pure: times are given, no clock is read."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

from common.watcher.settings import StallLimits

REMEMBERED = 200


@dataclass
class Pace:
    """Feed it each new step with the time at which it was seen.

    Args:
        began: time of the launch.
        limits: see watch.yaml.
        every: TEST_FREQ, SAVE_FREQ and the like: at their multiples a step takes longer than usual; 0 = never.
        total: the last step, which validates and saves too; 0 = not known.
    """

    began: float
    limits: StallLimits
    every: tuple[int, ...] = ()
    total: int = 0
    step: int = 0
    seen: float = 0.0
    steps_seen: int = 0
    usual: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    with_more: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def add(self, step: int, now: float) -> None:
        """A new step is in the log."""
        if step <= self.step and self.steps_seen:
            return
        # Several steps at one look share its time; the first gap holds compiling and loading.
        if self.steps_seen and step > 0:
            taken = (now - self.seen) / (step - self.step)
            more = any(self._does_more(number) for number in range(self.step, step + 1))
            (self.with_more if more else self.usual).append(taken)
        self.step, self.seen = step, now
        self.steps_seen += 1

    def _does_more(self, step: int) -> bool:
        """Whether something beside training lies around *step*: verl logs it before (SFT) or after (RL)."""
        due = any(freq > 0 and step > 0 and step % freq == 0 for freq in self.every)
        return due or (self.total > 0 and step >= self.total) or step <= 0

    @property
    def step_seconds(self) -> float | None:
        """Median seconds of a step that neither validates nor saves; of any step where there is no other."""
        times = self.usual or self.with_more
        return median(times) if times else None

    def limit(self) -> float:
        """Seconds after the newest step (the launch, before the second step) at which the run counts as stuck."""
        usual = self.step_seconds
        if usual is None:
            return self.limits.start
        allowed = max(self.limits.least, self.limits.factor * usual)
        if self._does_more(self.step) or self._does_more(self.step + 1):
            slow = median(self.with_more) if self.with_more else None
            allowed = max(allowed, self.limits.long if slow is None else self.limits.factor * slow)
        return allowed

    def _since(self, now: float) -> float:
        return now - (self.seen if self.step_seconds is not None else self.began)

    def late_by(self, now: float) -> float | None:
        """Seconds since anything happened when that is over the limit, else None."""
        since = self._since(now)
        return since if since > self.limit() else None

    def until_late(self, now: float) -> float:
        """Seconds until `late_by` would say so; below 0 when it does."""
        return self.limit() - self._since(now)

    def eta(self, now: float) -> float | None:
        """Seconds to the last step; None where it is not known."""
        usual = self.step_seconds
        if usual is None or not self.total:
            return None
        left = max(0, self.total - self.step)
        more = sum(self._does_more(step) for step in range(self.step + 1, self.total + 1))
        slow = median(self.with_more) if self.with_more else usual
        return max(0.0, (left - more) * usual + more * slow - (now - self.seen))


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
