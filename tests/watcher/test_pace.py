"""When a run is late, and how long it will take, on made-up times."""

from __future__ import annotations

import pytest

from common.watcher.pace import Pace, words
from common.watcher.settings import StallLimits

LIMITS = StallLimits(factor=5, least=10, long=600, start=1800)


def paced(times: dict[int, float], *, every: tuple[int, ...] = (), total: int = 0) -> Pace:
    pace = Pace(0.0, LIMITS, every, total)
    for step, seen in times.items():
        pace.add(step, seen)
    return pace


def test_before_the_second_step_only_the_start_limit_counts() -> None:
    pace = paced({1: 500.0})
    assert pace.late_by(1799.0) is None
    assert pace.late_by(1801.0) == 1801.0


@pytest.mark.parametrize(("seconds", "limit"), [(20.0, 100.0), (1.0, 10.0)])
def test_five_median_steps_but_never_less_than_the_least(seconds: float, limit: float) -> None:
    pace = paced({step: 100.0 + seconds * step for step in range(1, 8)})
    assert pace.limit() == limit
    assert pace.late_by(pace.seen + limit) is None
    assert pace.late_by(pace.seen + limit + 0.1) == pytest.approx(limit + 0.1)


def test_one_slow_step_does_not_move_the_limit() -> None:
    times = {step: 10.0 * step for step in range(1, 10)}
    times[10] = times[9] + 400.0
    assert paced(times).step_seconds == 10.0


def test_a_step_that_validates_may_take_longer_until_one_was_timed() -> None:
    every_ten = paced({step: 10.0 * step for step in range(1, 10)}, every=(10,))
    assert every_ten.limit() == 600.0  # step 10 comes next
    every_ten.add(10, 90.0 + 70.0)
    every_ten.add(11, 170.0)
    assert every_ten.with_more
    assert every_ten.step_seconds == 10.0
    assert every_ten.limit() == 50.0  # step 12 is a plain one
    for step in range(12, 20):
        every_ten.add(step, every_ten.seen + 10.0)
    assert every_ten.limit() == pytest.approx(5 * 40.0)  # the two gaps around step 10 took 70 and 10 s


def test_the_last_step_counts_as_a_slow_one() -> None:
    assert paced({step: 10.0 * step for step in range(1, 10)}, total=10).limit() == 600.0


def test_steps_between_two_looks_share_the_time() -> None:
    assert paced({1: 10.0, 5: 50.0}).step_seconds == 10.0


def test_a_step_seen_twice_counts_once() -> None:
    pace = paced({1: 10.0, 2: 20.0})
    pace.add(2, 500.0)
    assert (pace.seen, pace.steps_seen) == (20.0, 2)


def test_eta() -> None:
    pace = paced({step: 10.0 * step for step in range(1, 11)}, total=110)
    assert pace.eta(100.0) == pytest.approx(1000.0)
    assert pace.eta(104.0) == pytest.approx(996.0)
    assert paced({1: 5.0}, total=110).eta(6.0) is None
    assert paced({1: 5.0, 2: 6.0}).eta(7.0) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (700, "12 min"), (12_000, "3 h 20 min"), (190_000, "2 d 4 h")]
)
def test_words(seconds: float, text: str) -> None:
    assert words(seconds) == text
