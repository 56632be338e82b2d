"""One series per metric out of a run's attempts and their sources (pure)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monitor.log_parser import Float32, Int64
from monitor.series import Segment


@dataclass(frozen=True)
class Series:
    """One metric of one run, attempts stitched: the latest attempt wins at every step.

    ``key`` changes whenever earlier points may have changed; while it stays, the arrays only grow.
    ``branches`` are the superseded ends of earlier attempts.
    """

    key: str
    steps: Int64
    values: Float32
    branches: list[tuple[Int64, Float32]]


EMPTY = Series("", np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), [])


def stitched(metric: str, attempts: list[list[list[Segment]]]) -> Series:
    """The series of ``metric`` over all attempts, each given as its sources' segments, best source first."""
    pieces: list[tuple[Segment, list[Segment]]] = []
    for sources in attempts:
        having = [source for source in sources if any(metric in s.columns for s in source)]
        others = [segment for source in having[1:] for segment in source]
        pieces += [(segment, others) for segment in (having or sources)[0]]
    steps_parts: list[Int64] = []
    value_parts: list[Float32] = []
    branches: list[tuple[Int64, Float32]] = []
    key: list[str] = []
    limit: int | None = None
    for segment, others in reversed(pieces):
        steps, values, _ = segment.points(metric)
        values = _filled(metric, steps, values, others)
        # Superseded from where the later attempt begins; its first record may hold validation only.
        cut = len(steps) if limit is None else int(np.searchsorted(steps, limit))
        key.append(f"{segment.id}:{cut if limit is not None else ''}")
        steps_parts.append(steps[:cut])
        value_parts.append(values[:cut])
        if cut < len(steps):
            branches.append((steps[max(0, cut - 1) :], values[max(0, cut - 1) :]))
        if segment.used:
            begin = segment.first_step + (0 if len(steps) and steps[0] == segment.first_step else 1)
            limit = begin if limit is None else min(limit, begin)
    if len(steps_parts) == 1:
        return Series(key[0], steps_parts[0], value_parts[0], branches)
    if not steps_parts:
        return EMPTY
    steps_parts.reverse()
    value_parts.reverse()
    return Series("|".join(reversed(key)), np.concatenate(steps_parts), np.concatenate(value_parts), branches)


def _filled(metric: str, steps: Int64, values: Float32, others: list[Segment]) -> Float32:
    """Values with what the file logger wrote as null taken from the next source, which tells NaN from inf."""
    holes = np.flatnonzero(~np.isfinite(values)) if others else np.empty(0, dtype=np.int64)
    if not len(holes):
        return values
    filled = values.copy()
    for segment in others:
        known, replacements, _ = segment.points(metric)
        if not len(known):
            continue
        at = np.minimum(np.searchsorted(known, steps[holes]), len(known) - 1)
        same = known[at] == steps[holes]
        filled[holes[same]] = replacements[at[same]]
    return filled
