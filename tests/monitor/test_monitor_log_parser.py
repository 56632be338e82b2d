# ruff: noqa: E501  (tables of cases read better on one line)
"""Every line form that verl 0.9.1 writes, and what else lies in its logs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor import log_parser


def cells(batch: log_parser.Batch) -> list[tuple[int, dict[str, float]]]:
    """A batch as (step, {key: value}) rows."""
    rows: list[tuple[int, dict[str, float]]] = [(int(step), {}) for step in batch.steps]
    for key, (index, values) in batch.columns.items():
        for row, value in zip(range(len(rows)) if index is None else index, values, strict=True):
            rows[int(row)][1][key] = float(value)
    return rows


def test_file_logger_lines_become_columns() -> None:
    data = b'{"step":1,"data":{"a":1.5,"b":2}}\n{"step":2,"data":{"a":2.5,"b":3}}\n'
    batch = log_parser.parse_jsonl(data)
    assert cells(batch) == [(1, {"a": 1.5, "b": 2.0}), (2, {"a": 2.5, "b": 3.0})]
    assert batch.columns["a"][0] is None  # in every row: no row numbers kept
    assert batch.bad_lines == 0


def test_rows_with_different_keys_keep_their_places() -> None:
    data = b'{"step":0,"data":{"val":9}}\n{"step":1,"data":{"a":1}}\n{"step":2,"data":{"a":2,"val":8}}\n'
    assert cells(log_parser.parse_jsonl(data)) == [
        (0, {"val": 9.0}),
        (1, {"a": 1.0}),
        (2, {"a": 2.0, "val": 8.0}),
    ]


def test_null_is_nan_and_text_is_left_out() -> None:
    batch = log_parser.parse_jsonl(b'{"step":1,"data":{"a":null,"b":"words","c":true,"d":"inf"}}\n')
    row = cells(batch)[0][1]
    assert math.isnan(row["a"])
    assert row["c"] == 1.0
    assert row["d"] == math.inf
    assert "b" not in row


@pytest.mark.parametrize(
    "bad",
    [
        b'{"step":2,"data":{"a":1',  # cut
        b"\x00\xff\xfe junk \x80",  # binary
        b'{"step":"2","data":{"a":1}}',  # step is no number
        b'{"step":2,"data":[1]}',
        b'{"step":-2,"data":{"a":1}}',
        b"[]",
        b"17",
        b'{"step":99999999999999999999999,"data":{"a":1}}',
    ],
)
def test_a_bad_line_is_counted_and_its_neighbours_survive(bad: bytes) -> None:
    batch = log_parser.parse_jsonl(b'{"step":1,"data":{"a":1}}\n' + bad + b'\n{"step":3,"data":{"a":3}}\n')
    assert cells(batch) == [(1, {"a": 1.0}), (3, {"a": 3.0})]
    assert batch.bad_lines == 1
    assert batch.first_bad


def test_value_beyond_float32_is_infinite_not_an_error() -> None:
    batch = log_parser.parse_jsonl(b'{"step":1,"data":{"a":1e300}}\n')
    assert np.isinf(batch.columns["a"][1][0])


CONSOLE = [
    (b"step:3 - a/b:0.5 - c:2", 3, {"a/b": 0.5, "c": 2.0}),
    (b"\x1b[36m(TaskRunnerV1 pid=77, ip=10.0.0.1)\x1b[0m step:3 - a:np.float64(0.5) - n:np.int64(-2)", 3, {"a": 0.5, "n": -2.0}),
    (b"(TaskRunner pid=1) step:10 - a:nan - b:inf - c:-inf - d:1e-06", 10, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1e-6}),
    (b"Training Progress:  50%|#####     | 1/2 [00:01<00:01]\rstep:1 - a:1.0", 1, {"a": 1.0}),
    (b"step:1 - val-core/openai/gsm8k/acc/mean@1:0.25", 1, {"val-core/openai/gsm8k/acc/mean@1": 0.25}),
    (b"step:1 - val-core/a:b - c/mean@1:0.25 - x:1", 1, {"val-core/a:b - c/mean@1": 0.25, "x": 1.0}),
    (b"step:4 - a:np.float64(nan) - flag:True", 4, {"a": math.nan, "flag": 1.0}),
    (b"step:4 - a:1.0 - b:2.0 [repeated 3x across cluster]", 4, {"a": 1.0, "b": 2.0}),
    ("step:4 - 奖励:1.0 - \ufffd:2".encode(), 4, {"奖励": 1.0, "\ufffd": 2.0}),
]  # fmt: skip


@pytest.mark.parametrize(("line", "step", "expected"), CONSOLE)
def test_console_line(line: bytes, step: int, expected: dict[str, float]) -> None:
    (row,) = cells(log_parser.parse_console(b"noise before\n" + line + b"\nnoise after\n"))
    assert row[0] == step
    assert row[1].keys() == expected.keys()
    for key, value in expected.items():
        assert row[1][key] == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    "line", [b"last_step:3 - a:1", b"substep:3 - a:1", b"step:x - a:1", b"step 3 - a:1", b"global_step:5"]
)
def test_other_console_lines_are_passed_over(line: bytes) -> None:
    assert not len(log_parser.parse_console(line + b"\n").steps)


def test_console_keeps_undecodable_bytes_visible() -> None:
    (row,) = cells(log_parser.parse_console(b"step:1 - a\xff:1.0\n"))
    assert row == (1, {"a\ufffd": 1.0})


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**6), st.dictionaries(st.sampled_from("abcd"), st.floats(width=32), max_size=4)
        ),
        max_size=20,
    )
)
def test_whatever_is_logged_comes_back(records: list[tuple[int, dict[str, float]]]) -> None:
    text = "".join(
        json.dumps({"step": step, "data": {k: v if math.isfinite(v) else None for k, v in data.items()}})
        + "\n"
        for step, data in records
    )
    back = cells(log_parser.parse_jsonl(text.encode()))
    assert [step for step, _ in back] == [step for step, _ in records]
    for (_, got), (_, put) in zip(back, records, strict=True):
        assert got.keys() == put.keys()
        for key, value in put.items():
            assert got[key] == pytest.approx(value if math.isfinite(value) else math.nan, nan_ok=True)


@given(st.binary(max_size=400))
def test_no_bytes_break_a_parser(junk: bytes) -> None:
    for parse in (log_parser.parse_jsonl, log_parser.parse_console):
        batch = parse(junk + b"\n")
        assert len(batch.steps) >= 0
    log_parser.console_facts(junk)


def test_console_end_tells_total_and_error() -> None:
    text = (
        b"Training Progress:  10%|# | 10/100 [00:10<01:30,  1.0s/it]\nstep:10 - a:1\n"
        b'Traceback (most recent call last):\n  File "x.py", line 1\ntorch.OutOfMemoryError: CUDA out of memory.\n'
    )
    facts = log_parser.console_facts(text)
    assert (facts.at, facts.total_steps) == (10, 100)
    assert "OutOfMemoryError: CUDA out of memory." in facts.error


def test_other_progress_bars_are_not_the_training() -> None:
    text = (
        b"Loading checkpoint shards: 100%|#####| 2/2 [00:01<00:00]\nEpoch 1/3: 100%|##| 5/5 [00:01<00:00]\n"
    )
    assert log_parser.console_facts(text).total_steps is None


def test_error_before_the_last_record_is_not_the_end() -> None:
    assert log_parser.console_facts(b"ValueError: retried\nstep:10 - a:1\n").error == ""


def test_recognition_of_files() -> None:
    assert log_parser.looks_like_metrics(b'{"step":1,"data":{"a":1}}\n')
    assert not log_parser.looks_like_metrics(b'{"input":"x","output":"y"}\n')
    assert log_parser.looks_like_samples(b'{"input":"x","output":"y","score":1}\n')
    assert not log_parser.looks_like_samples(b'{"step":1,"data":{}}\n')
    assert log_parser.looks_like_console(b"\x1b[36m(T pid=1)\x1b[0m step:1 - a:1\n")
    assert not log_parser.looks_like_console(b"a step: of something\n")
