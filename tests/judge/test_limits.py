"""Concurrency and pace, as the server sees them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from common.judge.limits import Pace

from .conftest import make
from .judge_server import score


def test_as_many_at_once_as_allowed_and_no_more(serve: Callable, config: Callable) -> None:
    server = serve(lambda seen: score(5))
    # Each request waits at the server until eight are there: fewer would never be answered.
    server.hold = threading.Barrier(8)
    service = make(config(server, max_concurrency=8, timeout=30))
    futures = [service.submit(service.judge.score(str(n), "a")) for n in range(32)]
    assert [future.result(60).score for future in futures] == [5.0] * 32
    assert server.peak == 8


@pytest.mark.slow
def test_requests_keep_the_pace(serve: Callable, config: Callable) -> None:
    """600 a minute: up to one second's worth at once, the rest a tenth of a second apart."""
    server = serve(lambda seen: score(5))
    service = make(config(server, requests_per_minute=600, max_concurrency=32))
    service.submit(service.judge.score("first", "a")).result()
    begin = time.monotonic()
    for future in [service.submit(service.judge.score(str(n), "a")) for n in range(20)]:
        future.result()
    arrived = sorted(seen.time - begin for seen in server.seen[1:])
    assert all(at >= number * 61 / 600 - 1.0 - 0.01 for number, at in enumerate(arrived))
    assert arrived[-1] > 0.9


@pytest.mark.slow
def test_tokens_keep_the_pace_and_real_use_counts(serve: Callable, config: Callable) -> None:
    """A call is estimated at over 500 tokens and uses 57; 1000 a second are allowed."""
    server = serve(lambda seen: score(5))
    service = make(config(server, tokens_per_minute=60_000, max_tokens=64))
    service.submit(service.judge.score("first", "a")).result()
    for n in range(12):
        service.submit(service.judge.score(str(n), "one after the other")).result()
    # By the estimates alone they would wait over five seconds.
    assert service.judge.metrics.total["waited"] < 1

    async def at_once() -> None:
        await asyncio.gather(*[service.judge.score(str(n), "at once") for n in range(4)])

    begin = time.monotonic()
    service.submit(at_once()).result()
    assert max(seen.time for seen in server.seen) - begin > 0.5, "at once only the estimates are known"


@pytest.mark.parametrize("per_minute", [1, 3, 30, 60, 75, 600, 5000])
def test_no_minute_holds_more_than_allowed(per_minute: float) -> None:
    now = [1000.0]
    pace = Pace(per_minute, clock=lambda: now[0])
    starts = [now[0] + pace.reserve() for _ in range(int(per_minute) * 3)]
    now[0] += 400  # a long silence must not be saved up for later
    starts += [now[0] + pace.reserve() for _ in range(int(per_minute) * 2)]
    allowed = int(per_minute)
    assert all(later >= start + 60 for start, later in zip(starts, starts[allowed:], strict=False))
    # and the pace is used: 3 minutes' worth takes little more than 3 minutes
    assert starts[allowed * 3 - 1] - 1000 <= 60 * 3 * 1.02
    assert all(a <= b for a, b in pairwise(starts))


def test_given_back_units_shorten_the_queue() -> None:
    now = [0.0]
    pace = Pace(60, clock=lambda: now[0])
    pace.reserve(30)
    late = pace.reserve(1)
    pace.give_back(30)
    assert late > 25
    assert pace.reserve(1) < 2
