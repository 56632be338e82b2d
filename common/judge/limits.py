"""How fast a judge may be asked: so many at once, so many requests and tokens a minute, and pauses it asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

# A quota of 60 a minute or more may be used up to one second ahead of its even pace.
BURST_SECONDS = 1.0
_ROUNDING = 1 + 1e-9


class Pace:
    """An even pace with a small burst: never more than `per_minute` units start in any 60 seconds (GCRA).

    A unit may cost more than the burst allows; those after it wait for it.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = monotonic) -> None:
        self._burst = BURST_SECONDS if per_minute >= 60 else 0.0
        # The burst would come on top of a full minute's units, so the pace is a little slower.
        self._seconds = (60.0 + self._burst) / per_minute * _ROUNDING
        self._clock = clock
        self._free_at = clock()

    def reserve(self, units: float = 1.0) -> float:
        """Take the next place in line; returns the seconds to wait for it."""
        now = self._clock()
        self._free_at = max(self._free_at, now - self._burst)
        wait = max(0.0, self._free_at - now)
        self._free_at += units * self._seconds
        return wait

    def give_back(self, units: float) -> None:
        """Correct a reservation that was too large (or, negative, too small)."""
        self._free_at -= units * self._seconds


class Limits:
    """All limits of one judge in one process; used on one event loop.

    Args:
        concurrency: most requests at once.
        requests_per_minute, tokens_per_minute: 0 for no limit.
    """

    def __init__(self, concurrency: int, requests_per_minute: float, tokens_per_minute: float) -> None:
        self._slots = asyncio.Semaphore(concurrency)
        self._requests = Pace(requests_per_minute) if requests_per_minute else None
        self._tokens = Pace(tokens_per_minute) if tokens_per_minute else None
        self._paused_until = 0.0

    @asynccontextmanager
    async def turn(self, tokens: float) -> AsyncIterator[float]:
        """Hold a slot for one request of about `tokens` tokens, once the pace allows it; gives the seconds waited."""
        async with self._slots:
            wait = self._requests.reserve() if self._requests else 0.0
            if self._tokens:
                wait = max(wait, self._tokens.reserve(tokens))
            if wait:
                await asyncio.sleep(wait)
            while (pause := self._paused_until - monotonic()) > 0:
                wait += pause
                await asyncio.sleep(pause)
            yield wait

    def used(self, estimated: float, real: float) -> None:
        """Replace the estimate of a finished request by what it used."""
        if self._tokens:
            self._tokens.give_back(estimated - real)

    def pause(self, seconds: float) -> None:
        """Start nothing for so long: the server said Retry-After."""
        self._paused_until = max(self._paused_until, monotonic() + seconds)
