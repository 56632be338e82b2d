"""Columns of numbers that only grow, and the arithmetic the charts need: min-max reduction and smoothing.

One writer appends, any number of readers look: what was appended never moves or changes, so a reader holds an
immutable view while the writer goes on.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from monitor.log_parser import Batch, Float32, Int32, Int64

Float64 = np.ndarray[Any, np.dtype[np.float64]]
_ids = itertools.count(1)
_EMA_BLOCK = 128


def grown(array: np.ndarray[Any, Any], used: int, extra: int) -> np.ndarray[Any, Any]:
    """``array`` with room for ``extra`` more after ``used``; the old one stays valid for its readers."""
    if used + extra <= len(array):
        return array
    room = np.empty(max(256, used + extra, int(used * 1.5)), dtype=array.dtype)
    room[:used] = array[:used]
    return room


class Column:
    """One metric of one segment. Rows are implied while no row misses a value, and stored from then on."""

    __slots__ = ("_rows", "_start", "_values", "last_row", "used")

    def __init__(self) -> None:
        self._values: Float32 = np.empty(0, dtype=np.float32)
        self._rows: Int32 | None = None
        self._start = 0
        self.used = 0
        self.last_row = -1

    def append(self, rows: Int32, values: Float32) -> None:
        """Add values at strictly growing rows; a value for the newest row again replaces it."""
        if len(rows) > 1 and not np.all(rows[1:] > rows[:-1]):
            keep = np.append(
                rows[1:] != rows[:-1], True
            )  # the same step logged twice: the later value counts
            rows, values = rows[keep], values[keep]
        if len(rows) and rows[0] == self.last_row:
            self._values[self.used - 1] = values[0]
            rows, values = rows[1:], values[1:]
        count = len(rows)
        if not count:
            return
        first, last = int(rows[0]), int(rows[-1])
        contiguous = last - first == count - 1
        if self.used == 0:
            self._start = first
        if self._rows is None and not (contiguous and first == self._start + self.used):
            self._rows = np.arange(self._start, self._start + self.used, dtype=np.int32)
        if self._rows is not None:
            self._rows = grown(self._rows, self.used, count)
            self._rows[self.used : self.used + count] = rows
        self._values = grown(self._values, self.used, count)
        self._values[self.used : self.used + count] = values
        self.used += count
        self.last_row = last

    def view(self, below: int | None = None) -> tuple[Int32 | slice, Float32]:
        """Rows (an index into the segment's steps) and values, as far as row ``below`` where given."""
        used, values, rows, start = self.used, self._values, self._rows, self._start
        if rows is None:
            if below is not None:
                used = max(0, min(used, below - start))
            return slice(start, start + used), values[:used]
        if below is not None:
            used = int(np.searchsorted(rows[:used], below))
        return rows[:used], values[:used]

    def state(self) -> tuple[int, Int32 | None, Float32]:
        """What the index cache stores: start, rows or None, values."""
        return self._start, None if self._rows is None else self._rows[: self.used], self._values[: self.used]

    @classmethod
    def restored(cls, start: int, rows: Int32 | None, values: Float32) -> Column:
        column = cls()
        column._start, column._rows, column._values, column.used = start, rows, values, len(values)
        if len(values):
            column.last_row = int(rows[-1]) if rows is not None else start + len(values) - 1
        return column


class Segment:
    """Records of one file between two backward jumps of the step: steps grow strictly from row to row."""

    __slots__ = ("_steps", "columns", "id", "used")

    def __init__(self) -> None:
        self.id = next(_ids)
        self._steps: Int64 = np.empty(0, dtype=np.int64)
        self.used = 0
        self.columns: dict[str, Column] = {}

    @property
    def steps(self) -> Int64:
        used = self.used
        return self._steps[:used]

    @property
    def first_step(self) -> int:
        return int(self._steps[0]) if self.used else -1

    @property
    def last_step(self) -> int:
        return int(self._steps[self.used - 1]) if self.used else -1

    def append(self, steps: Int64, columns: dict[str, tuple[Int32 | None, Float32]]) -> None:
        """Add records with non-decreasing steps; records of one step share a row."""
        fresh = np.diff(steps, prepend=self.last_step if self.used else steps[0] - 1) > 0
        row_of = (self.used - 1 + np.cumsum(fresh)).astype(np.int32)
        added = steps[fresh]
        self._steps = grown(self._steps, self.used, len(added))
        self._steps[self.used : self.used + len(added)] = added
        self.used += len(added)
        for key, (rows, values) in columns.items():
            column = self.columns.get(key)
            if column is None:
                column = Column()
                column.append(row_of if rows is None else row_of[rows], values)
                # A new dict, so that a reader iterating the old one is not disturbed.
                self.columns = {**self.columns, key: column}
            else:
                column.append(row_of if rows is None else row_of[rows], values)

    def points(self, key: str, below_step: int | None = None) -> tuple[Int64, Float32, Int32 | slice]:
        """Steps, values and rows of a metric, cut before ``below_step``; empty without the metric."""
        column = self.columns.get(key)
        steps = self.steps
        if column is None:
            return steps[:0], np.empty(0, dtype=np.float32), slice(0, 0)
        below = len(steps) if below_step is None else int(np.searchsorted(steps, below_step))
        rows, values = column.view(below)
        return steps[rows], values, rows

    @classmethod
    def restored(cls, steps: Int64, columns: dict[str, Column]) -> Segment:
        segment = cls()
        segment._steps, segment.used, segment.columns = steps, len(steps), columns
        return segment


def append_batch(segments: list[Segment], batch: Batch) -> list[Segment]:
    """Add a batch to a file's segments; a step that goes backwards opens a new one. Returns the new list."""
    steps = batch.steps
    if not len(steps):
        return segments
    previous = np.concatenate(([segments[-1].last_step if segments else -1], steps[:-1]))
    cuts = [int(cut) for cut in np.flatnonzero(steps < previous)]
    bounds = [0, *[cut for cut in cuts if cut > 0], len(steps)]
    result = list(segments)
    for begin, end in itertools.pairwise(bounds):
        if not result or begin in cuts:
            result.append(Segment())
        columns: dict[str, tuple[Int32 | None, Float32]] = {}
        for key, (rows, values) in batch.columns.items():
            if rows is None:
                columns[key] = (None, values[begin:end])
                continue
            low, high = np.searchsorted(rows, (begin, end))
            if high > low:
                columns[key] = (rows[low:high] - np.int32(begin), values[low:high])
        result[-1].append(steps[begin:end], columns)
    return result


@dataclass(frozen=True)
class Reduced:
    """Points chosen for drawing, as indices into the series, and where the values are not finite."""

    keep: Int64
    broken: Int64


def bucket_width(points: int, buckets: int) -> int:
    """The power of two that puts ``points`` into at most ``buckets`` buckets: it rarely changes."""
    width = 1
    while points > buckets * width:
        width *= 2
    return width


def reduce_min_max(values: Float32, width: int, begin: int = 0, end: int | None = None) -> Reduced:
    """Keep the smallest and the largest value of every ``width`` values, so that no spike is lost.

    Buckets are counted from index 0 whatever ``begin`` is (it must be a multiple of ``width``), hence earlier
    buckets never change when values are appended. Non-finite values are left out of the line and reported;
    a bucket with no finite value keeps one of them, which breaks the line there. The last value is kept.
    """
    end = len(values) if end is None else min(end, len(values))
    part = values[begin:end]
    finite = np.isfinite(part)
    broken = np.flatnonzero(~finite) + begin
    if width == 1:
        return Reduced(np.arange(begin, end, dtype=np.int64), broken)
    whole = len(part) // width * width
    chosen: list[Int64] = []
    if whole:
        chosen.append(_extremes(part[:whole].reshape(-1, width), finite[:whole].reshape(-1, width)))
    if whole < len(part):
        tail = _extremes(part[None, whole:], finite[None, whole:])
        chosen += [tail + whole, np.array([len(part) - 1], dtype=np.int64)]
    elif whole:
        chosen.append(np.array([whole - 1], dtype=np.int64))
    if not chosen:
        return Reduced(np.empty(0, dtype=np.int64), broken)
    return Reduced(np.unique(np.concatenate(chosen)) + begin, broken)


def _extremes(blocks: Float32, finite: np.ndarray[Any, np.dtype[np.bool_]]) -> Int64:
    if finite.all():
        low, high = blocks.argmin(axis=1), blocks.argmax(axis=1)
    else:
        low = np.where(finite, blocks, np.float32(np.inf)).argmin(axis=1)
        high = np.where(finite, blocks, np.float32(-np.inf)).argmax(axis=1)
    base = np.arange(len(blocks), dtype=np.int64) * blocks.shape[1]
    return np.concatenate((base + low, base + high))


class Ema:
    """Exponential moving average with TensorBoard's bias correction, extended as the series grows.

    ``weight`` in [0, 1): the share of the past in each value. Non-finite values repeat the last finite one.
    """

    def __init__(self, weight: float) -> None:
        if not 0.0 <= weight < 1.0:
            raise ValueError(f"smoothing must be at least 0 and below 1, not {weight}")
        self.weight = weight
        self._out: Float32 = np.empty(0, dtype=np.float32)
        self._used = 0
        self._carry = 0.0
        self._last = 0.0
        self._seen = 0
        powers = np.arange(_EMA_BLOCK)
        gap = powers[:, None] - powers[None, :]
        self._kernel = np.where(gap >= 0, (1 - weight) * weight ** np.maximum(gap, 0), 0.0)
        self._decay = weight ** (powers + 1.0)

    def extend(self, values: Float32) -> Float32:
        """Smooth the whole series ``values``; only what is new since the last call is computed."""
        if len(values) < self._used:
            raise ValueError("a series that is being smoothed may only grow")
        fresh = values[self._used :].astype(np.float64)
        if len(fresh):
            self._out = grown(self._out, self._used, len(fresh))
            self._out[self._used : self._used + len(fresh)] = self._smooth(fresh)
            self._used += len(fresh)
        return self._out[: self._used]

    def _smooth(self, fresh: Float64) -> Float64:
        finite = np.isfinite(fresh)
        if not finite.all():
            positions = np.where(finite, np.arange(len(fresh)), -1)
            positions = np.maximum.accumulate(positions)
            fresh = np.where(positions >= 0, fresh[np.maximum(positions, 0)], self._last)
        self._last = float(fresh[-1])
        count = len(fresh)
        blocks = -(-count // _EMA_BLOCK)
        padded = np.zeros(blocks * _EMA_BLOCK)
        padded[:count] = fresh
        smooth = padded.reshape(blocks, _EMA_BLOCK) @ self._kernel.T
        carry = self._carry
        for index in range(blocks):
            smooth[index] += carry * self._decay
            carry = smooth[index, -1]
        flat = smooth.reshape(-1)[:count]
        self._carry = float(flat[-1])
        seen = self._seen + np.arange(1, count + 1)
        self._seen += count
        return flat / (1.0 - self.weight**seen)
