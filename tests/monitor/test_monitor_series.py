"""Columns, reduction and smoothing against plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.log_parser import Batch
from monitor.series import Ema, append_batch, bucket_width, reduce_min_max


def batch(steps: list[int], **columns: list[float | None]) -> Batch:
    """A batch; None in a column is a row without the key."""
    made = {}
    for key, values in columns.items():
        rows = np.array([i for i, v in enumerate(values) if v is not None], dtype=np.int32)
        made[key] = (rows, np.array([v for v in values if v is not None], dtype=np.float32))
    return Batch(np.array(steps, dtype=np.int64), made)  # type: ignore[arg-type]


def test_growing_columns_keep_steps_and_values_together() -> None:
    segments = append_batch([], batch([0, 1, 2], a=[None, 1, 2], v=[9, None, None]))
    segments = append_batch(segments, batch([3, 4], a=[3, 4], v=[None, 8]))
    (segment,) = segments
    steps, values, _ = segment.points("a")
    assert steps.tolist() == [1, 2, 3, 4]
    assert values.tolist() == [1, 2, 3, 4]
    steps, values, _ = segment.points("v")
    assert (steps.tolist(), values.tolist()) == ([0, 4], [9, 8])


def test_records_of_one_step_share_a_row_even_across_batches() -> None:
    segments = append_batch([], batch([1, 1], train=[0.5, None], val=[None, 0.7]))
    segments = append_batch(segments, batch([1, 2], late=[3, None], train=[None, 0.4]))
    (segment,) = segments
    assert segment.steps.tolist() == [1, 2]
    assert segment.points("late")[0].tolist() == [1]
    assert segment.points("train")[1].tolist() == pytest.approx([0.5, 0.4])


def test_the_same_key_twice_in_a_step_keeps_the_later() -> None:
    segments = append_batch([], batch([1, 1, 2], a=[1, 2, 3]))
    assert segments[0].points("a")[1].tolist() == [2, 3]
    segments = append_batch(segments, batch([2], a=[30]))
    assert segments[0].points("a")[1].tolist() == [2, 30]


def test_steps_going_backwards_open_a_new_segment() -> None:
    segments = append_batch([], batch([1, 2, 3, 2, 3, 4, 1], a=[1, 2, 3, 20, 30, 40, 100]))
    assert [s.steps.tolist() for s in segments] == [[1, 2, 3], [2, 3, 4], [1]]
    assert [s.points("a")[1].tolist() for s in segments] == [[1, 2, 3], [20, 30, 40], [100]]


def test_a_reader_keeps_its_view_while_the_writer_goes_on() -> None:
    segments = append_batch([], batch(list(range(100)), a=[float(i) for i in range(100)]))
    steps, values, _ = segments[0].points("a")
    append_batch(segments, batch(list(range(100, 5000)), a=[0.0] * 4900))
    assert len(steps) == len(values) == 100
    assert values.tolist() == [float(i) for i in range(100)]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=300), st.sampled_from([1, 2, 4, 8, 16]))
def test_reduction_keeps_every_extreme_and_the_ends(values: list[float], width: int) -> None:
    array = np.array(values, dtype=np.float32)
    keep = reduce_min_max(array, width).keep
    assert keep.tolist() == sorted(set(keep.tolist()))
    assert keep[-1] == len(array) - 1
    for begin in range(0, len(array), width):
        bucket = array[begin : begin + width]
        kept = array[keep[(keep >= begin) & (keep < begin + width)]]
        assert kept.max() == bucket.max()
        assert kept.min() == bucket.min()


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([2, 4, 8]))
def test_appending_changes_only_the_open_bucket(first: int, more: int, width: int) -> None:
    values = np.random.default_rng(first).normal(size=first + more).astype(np.float32)
    begin = (first - 1) // width * width
    old = reduce_min_max(values[:first], width).keep
    new = reduce_min_max(values, width).keep
    assert old[old < begin].tolist() == new[new < begin].tolist()
    assert reduce_min_max(values, width, begin).keep.tolist() == new[new >= begin].tolist()


def test_one_step_spike_in_100k_points_survives() -> None:
    values = np.zeros(100_000, dtype=np.float32)
    values[54_321] = 7.0
    keep = reduce_min_max(values, bucket_width(len(values), 400)).keep
    assert len(keep) < 1000
    assert 54_321 in keep


def test_non_finite_values_leave_the_line_and_are_reported() -> None:
    values = np.array([1, np.nan, 3, np.inf, 5, 6, np.nan, np.nan], dtype=np.float32)
    reduced = reduce_min_max(values, 2)
    assert reduced.broken.tolist() == [1, 3, 6, 7]
    assert {0, 2, 4, 5} <= set(reduced.keep.tolist())
    assert reduced.keep[-1] == 7  # a bucket without a finite value breaks the line


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9, 0.99])
def test_smoothing_is_the_debiased_moving_average(weight: float) -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    expected, carry = [], 0.0
    for count, value in enumerate(values, 1):
        carry = carry * weight + (1 - weight) * float(value)
        expected.append(carry / (1 - weight**count))
    ema = Ema(weight)
    for end in (1, 7, 130, 131, 600, 1000):
        got = ema.extend(values[:end])
    assert np.allclose(got, expected, atol=1e-5)


def test_smoothing_repeats_the_last_finite_value_over_holes() -> None:
    got = Ema(0.5).extend(np.array([2, np.nan, np.inf, 2], dtype=np.float32))
    assert np.allclose(got, 2.0)


def test_smoothing_weight_is_checked() -> None:
    with pytest.raises(ValueError, match="below 1"):
        Ema(1.0)
