"""The policy `drop`: a sample whose judgement failed gets the mean of its group, so that it teaches nothing.

verl scores sample by sample and knows no "no score". But the samples of one prompt are scored side by side
(trainer/ppo/v1/agent_loop_tq.py: `_run_prompt` starts them together and publishes the group when the last is
there), so a failed one can wait for the others and take their mean, at no cost to the run.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from math import fsum

from common.judge.failures import CallFailed

# Scores of the same split that stand in where a group has none (every sample failed, or one sample a prompt).
RECENT = 256
_MOST_GROUPS = 100_000


@dataclass(frozen=True)
class Place:
    """Where a sample belongs.

    Attributes:
        group: verl's uid of the prompt; "" where unknown.
        sample: its number within the group.
        size: samples of that group.
        split: "train" or "val" or what the data calls it.
    """

    group: str = ""
    sample: int = 0
    size: int = 1
    split: str = ""


@dataclass
class _Group:
    scores: dict[int, float | None] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)


class Groups:
    """Scores of the groups that are being judged; used on one event loop.

    Args:
        wait: seconds after which a failed sample waits no longer for siblings (one whose generation failed never
            comes; verl then discards the whole group anyway).
    """

    def __init__(self, wait: float) -> None:
        self._wait = wait
        self._open: OrderedDict[tuple[str, str], _Group] = OrderedDict()
        self._recent: dict[str, deque[float]] = {}
        self._first = asyncio.Event()

    def report(self, place: Place, score: float | None) -> _Group | None:
        """Note a sample's score, None for a failed judgement."""
        if score is not None:
            self._recent.setdefault(place.split, deque(maxlen=RECENT)).append(score)
            self._first.set()
        if not place.group or place.size < 2:
            return None
        key = (place.split, place.group)
        group = self._open.setdefault(key, _Group())
        group.scores[place.sample] = score
        if len(group.scores) >= place.size:
            group.complete.set()
            del self._open[key]
        elif len(self._open) > _MOST_GROUPS:
            self._open.popitem(last=False)
        return group

    async def fill(self, place: Place) -> float:
        """The score of a failed sample: the mean of its group's judged samples, else of the recent ones.

        Raises:
            CallFailed: "no_mean" where nothing at all was judged within the wait.
        """
        group = self.report(place, None)
        if group is not None:
            await self._until(group.complete)
            known = [score for score in group.scores.values() if score is not None]
            if known:
                return fsum(known) / len(known)
        await self._until(self._first)
        recent = self._recent.get(place.split) or [s for scores in self._recent.values() for s in scores]
        if not recent:
            raise CallFailed("no_mean", "no judgement succeeded yet, so there is no mean to fill in")
        return fsum(recent) / len(recent)

    async def _until(self, event: asyncio.Event) -> None:
        try:
            await asyncio.wait_for(event.wait(), self._wait)
        except asyncio.TimeoutError:
            return
