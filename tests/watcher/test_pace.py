"""When a run is late, and how long it will take, on made-up times."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from common.watcher.pace import Pace, words
from common.watcher.settings import StallLimits, load

LIMITS = StallLimits(factor=5, least=10, long=600, start=1800)


def paced(times: dict[int, float], *, every: tuple[int, ...] = (), total: int = 0) -> Pace:
    pace = Pace(0.0, LIMITS, every, total)
    for step, seen in times.items():
        pace.add(step, seen)
    return pace


def test_before_the_second_step_only_the_start_limit_counts() -> None:
    """It counts from the launch, and anew from the first step: a long start says nothing of how long a step takes."""
    pace = paced({})
    assert pace.late_by(1799.0) is None
    assert pace.late_by(1801.0) == 1801.0
    pace.add(1, 1700.0)
    assert pace.late_by(1700.0 + 1799.0) is None
    assert pace.late_by(1700.0 + 1801.0) == 1801.0


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
    assert every_ten.step_seconds == 10.0
    assert every_ten.limit() == 50.0  # step 12 is a plain one
    for step in range(12, 20):
        every_ten.add(step, every_ten.seen + 10.0)
    assert every_ten.limit() == 5 * 70.0


def test_the_last_step_counts_as_a_slow_one() -> None:
    assert paced({step: 10.0 * step for step in range(1, 10)}, total=10).limit() == 600.0


def test_steps_between_two_looks_share_the_time() -> None:
    assert paced({1: 10.0, 5: 50.0}).step_seconds == 10.0


def test_a_step_seen_twice_counts_once() -> None:
    pace = paced({1: 10.0, 2: 20.0})
    pace.add(2, 500.0)
    assert (pace.seen, pace.steps_seen) == (20.0, 2)


def extra(step: int, costs: dict[int, float], total: int) -> float:
    """Seconds of validating and saving at *step*."""
    return sum(seconds for freq, seconds in costs.items() if step % freq == 0 or step == total)


@pytest.mark.parametrize("logs_first", [True, False])
@pytest.mark.parametrize(
    ("plain", "costs"),
    [(2.0, {10: 60.0}), (10.0, {5: 30.0, 50: 300.0}), (10.0, {20: 90.0, 30: 400.0}), (30.0, {1: 100.0})],
)
def test_a_healthy_run_is_never_late_and_its_end_is_known(
    logs_first: bool, plain: float, costs: dict[int, float]
) -> None:
    total, now = 200, 100.0
    pace = Pace(0.0, load().stall, tuple(costs), total, logs_first)
    ends = sum(plain + extra(step, costs, total) for step in range(1, total + 1)) + now
    for step in range(1, total + 1):
        work = extra(step, costs, total)
        logged = now + plain + (0.0 if logs_first else work)
        assert pace.late_by(logged) is None, f"step {step}"
        pace.add(step, logged)
        now += plain + work
        assert pace.late_by(now) is None, f"after step {step}"
        if step >= 121:  # each kind of work but the last step's was seen
            slack = sum(costs.values())
            assert pace.eta(logged) == pytest.approx(ends - logged, abs=slack)
    assert pace.step_seconds == pytest.approx(plain if 1 not in costs else plain + costs[1], abs=0.1)


def test_each_kind_of_work_is_held_against_its_own() -> None:
    pace = paced({step: 10.0 * step for step in range(1, 5)}, every=(5, 20))
    for step in range(5, 20):
        pace.add(step, pace.seen + (40.0 if step % 5 == 0 else 10.0))
    assert pace.limit() == 600.0  # step 20 saves, which was never timed
    pace.add(20, pace.seen + 110.0)
    for step in range(21, 25):
        pace.add(step, pace.seen + 10.0)
    assert pace.limit() == 200.0


def test_a_validation_that_shares_a_look_with_plain_steps_is_told_from_them() -> None:
    pace = paced({step: 0.5 * step for step in range(1, 9)}, every=(10,))
    pace.add(12, pace.seen + 4 * 0.5 + 60.0)
    pace.add(19, pace.seen + 7 * 0.5)
    assert pace.step_seconds == 0.5
    assert pace.limit() == pytest.approx(5 * 60.5)


def test_the_first_line_of_an_attempt_is_no_sample() -> None:
    """DPO logs the step that it resumes from after a validation; it validates and saves nothing then."""
    pace = Pace(0.0, LIMITS, (10,), 0, True)
    for step in range(20, 31):
        pace.add(step, 100.0 + 2.0 * step)
    assert pace.limit() == 600.0


def test_steps_are_counted_by_kind_without_a_look_at_each() -> None:
    pace = Pace(0.0, LIMITS, (4, 6, 0, 10), 0)
    found = {kind: count for kind, count in pace._count(7, 500).items() if count}
    assert found == Counter(pace._due(step) for step in range(7, 501))
    long = paced({1: 1.0, 2: 2.0, 3: 3.0}, every=(100, 150), total=10**9)
    began = time.perf_counter()
    assert long.eta(3.0) is not None
    assert time.perf_counter() - began < 0.05


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
