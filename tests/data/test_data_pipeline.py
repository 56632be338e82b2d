"""Whole files: policies, completeness, atomic output, schema widening, both cores, the way back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, gsm_rows

from common.data_utils import DataError, convert, json_to_parquet, load_rows, parquet_to_json, validate
from common.data_utils import pipeline as pipeline_module
from common.data_utils import readers as readers_module
from common.data_utils.atomic import clear_stale, temp_beside
from common.data_utils.pool import Pool
from common.data_utils.table import build, common_type

Write = Callable[..., Path]


def read(path: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(path).to_pylist())


def test_rl_file_has_exactly_the_rows_of_convert(write_lines: Write, tmp_path: Path) -> None:
    rows = gsm_rows(5)
    summary = json_to_parquet(write_lines(rows), tmp_path / "o.parquet", task="rl")
    assert (summary.rows_in, summary.rows_out, summary.rejected, summary.rejected_file) == (5, 5, 0, None)
    assert summary.data_sources == ["openai/gsm8k"]
    assert read(tmp_path / "o.parquet") == convert(rows, "rl").rows


def test_workers_and_one_process_write_the_same(
    write_lines: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers_module, "CHUNK_BYTES", 2000)
    rows: list[Any] = gsm_rows(300)
    rows[77], rows[200], rows[290] = "{broken", {"question": "q", "answer": ""}, "[1]"
    source = write_lines(rows)
    results = []
    for workers in (1, 2):
        path = tmp_path / f"{workers}.parquet"
        json_to_parquet(source, path, task="rl", workers=workers, bad_rows="quarantine")
        rejected = [json.loads(line) for line in path.with_name(f"{workers}.rejected.jsonl").open()]
        results.append((read(path), rejected))
    assert results[0] == results[1]
    assert [entry["row"] for entry in results[0][1]] == [78, 201, 291]
    assert [row["extra_info"]["index"] for row in results[0][0]] == list(range(297))


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.parquet", "a.jsonl.gz"])
def test_every_reader_feeds_the_workers(name: str, tmp_path: Path) -> None:
    from test_data_readers import write

    rows = gsm_rows(20)
    write(tmp_path / name, rows)
    json_to_parquet(tmp_path / name, tmp_path / "o.parquet", task="rl", workers=2)
    assert read(tmp_path / "o.parquet") == convert(rows, "rl").rows


def test_a_dead_worker_is_an_error_and_not_a_hang(write_lines: Write) -> None:
    from common.data_utils.records import Options
    from common.data_utils.sources import resolve

    resolved = resolve(str(write_lines(gsm_rows(3))))
    plan = pipeline_module.plan_source(resolved, "rl", Options())
    with Pool(1) as pool:
        pool._workers[0].kill()
        with pytest.raises(RuntimeError, match="a conversion worker died"):
            list(pipeline_module.stream(resolved, plan, pool))


def test_error_policy_lists_twenty_rows_and_writes_nothing(write_lines: Write, tmp_path: Path) -> None:
    rows = gsm_rows(10) + [{"question": "", "answer": "#### 1"}] * 25
    source = write_lines(rows)
    with pytest.raises(DataError) as caught:
        json_to_parquet(source, tmp_path / "out" / "o.parquet", task="sft")
    lines = caught.value.problems
    assert lines[0] == f"{source}: row 11: question: is empty"
    assert len(lines) == 22
    assert lines[20] == "... and 5 more rows"
    assert "25 of 35 rows cannot be used, nothing was written" in lines[21]
    assert list((tmp_path / "out").iterdir()) == []


def test_quarantine_keeps_good_rows_and_names_the_others(write_lines: Write, tmp_path: Path) -> None:
    bad = {"question": "  ", "answer": "x", "id": 9}
    output = tmp_path / "o.parquet"
    summary = json_to_parquet(write_lines([*gsm_rows(3), bad]), output, task="sft", bad_rows="quarantine")
    assert (summary.rows_in, summary.rows_out, summary.rejected) == (4, 3, 1)
    rejected = tmp_path / "o.rejected.jsonl"
    assert summary.rejected_file == str(rejected)
    entry = json.loads(rejected.read_text())
    assert (entry["row"], entry["field"], entry["reason"], entry["data"]) == (4, "question", "is empty", bad)
    json_to_parquet(write_lines(gsm_rows(3)), output, task="sft", bad_rows="quarantine")
    assert not rejected.exists()


def test_no_good_row_is_an_error_under_both_policies(write_lines: Write, tmp_path: Path) -> None:
    source = write_lines([{"question": "", "answer": "a"}])
    for policy in ("error", "quarantine"):
        with pytest.raises(DataError):
            json_to_parquet(source, tmp_path / "out" / "o.parquet", task="sft", bad_rows=policy)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(DataError, match="holds no readable rows"):
        json_to_parquet(write_lines([], "empty.jsonl"), tmp_path / "o.parquet", task="sft")
    with pytest.raises(DataError, match=r"none of the first 1 rows can be read; row 1: json"):
        json_to_parquet(write_lines(["{"], "broken.jsonl"), tmp_path / "o.parquet", task="sft")


def test_lone_surrogates_are_bad_rows_and_not_a_crash(write_lines: Write, tmp_path: Path) -> None:
    half = '{"question": "\\ud83d", "answer": "a"}'
    source = write_lines([*gsm_rows(2), half, {"question": "ok", "answer": "a"}])
    summary = json_to_parquet(source, tmp_path / "o.parquet", task="sft", bad_rows="quarantine")
    assert (summary.rows_out, summary.rejected) == (3, 1)
    entry = json.loads((tmp_path / "o.rejected.jsonl").read_text())
    assert (entry["row"], "surrogate" in entry["reason"]) == (3, True)


def test_extra_columns_widen_as_rows_bring_them(
    write_lines: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers_module, "CHUNK_BYTES", 1)  # every row a chunk of its own
    base = {"question": "q", "answer": "4"}
    more = [
        {},
        {"level": 1},
        {"level": 2.5, "tags": ["x"]},
        {"level": "hard", "meta": {"a": 1}},
        {"meta": {"b": [1, 2]}, "tags": []},
        {"level": None, "big": 2**62, "none": None, "empty": {}},
    ]
    json_to_parquet(write_lines([{**base, **extra} for extra in more]), tmp_path / "o.parquet", task="rl")
    found = [row["extra_info"] for row in read(tmp_path / "o.parquet")]
    assert [row["level"] for row in found] == [None, "1", "2.5", "hard", None, None]
    assert [row["tags"] for row in found] == [None, None, ["x"], None, [], None]
    assert found[3]["meta"] == {"a": 1, "b": None}
    assert found[4]["meta"] == {"a": None, "b": [1, 2]}
    assert (found[5]["big"], found[5]["empty"]) == (2**62, "{}")
    assert [row["index"] for row in found] == list(range(6))


def test_mixed_types_in_one_chunk_become_text(write_lines: Write, tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "4", "x": value} for value in (1, "a", [1], None, {"k": "v"})]
    json_to_parquet(write_lines(rows), tmp_path / "o.parquet", task="rl")
    values = [row["extra_info"]["x"] for row in read(tmp_path / "o.parquet")]
    assert values == ["1", "a", "[1]", None, '{"k": "v"}']


def test_optional_message_fields_appear_only_where_used(write_lines: Write, tmp_path: Path) -> None:
    plain = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    json_to_parquet(write_lines([plain]), tmp_path / "o.parquet", task="sft")
    kind = pq.read_schema(tmp_path / "o.parquet").field("messages").type.value_type
    assert [field.name for field in kind] == ["role", "content"]


def test_own_index_of_verl_rows_is_kept(write_lines: Write, tmp_path: Path) -> None:
    base = {"prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": "4"}}
    rows = [{**base, "extra_info": {"index": 70, "split": "test"}}, {**base, "extra_info": {}}]
    json_to_parquet(write_lines(rows), tmp_path / "o.parquet", task="rl")
    found = [row["extra_info"] for row in read(tmp_path / "o.parquet")]
    assert found == [{"index": 70, "split": "test"}, {"index": 1, "split": "train"}]


def test_several_sources_of_several_formats(write_lines: Write, tmp_path: Path) -> None:
    one = write_lines(gsm_rows(2), "one.jsonl")
    two = write_lines([{"instruction": "do", "output": "done", "x": 1}], "two.jsonl")
    summary = json_to_parquet(f"{one},{two}", tmp_path / "o.parquet", task="sft")
    assert [(part.format, part.rows_out) for part in summary.sources] == [("qa", 2), ("alpaca", 1)]
    assert summary.sources[1].notes == ["columns that sft rows have no place for, left out: x"]
    assert len(read(tmp_path / "o.parquet")) == 3


@pytest.mark.slow  # several starts of the command
def test_killed_conversion_leaves_no_half_file(tmp_path: Path, write_lines: Write) -> None:
    source = write_lines(gsm_rows(60_000))
    output = tmp_path / "out" / "o.parquet"
    command = [sys.executable, "-m", "common.data_utils", "convert", str(source), str(output), "--task", "rl"]
    for number, left in ((signal.SIGKILL, 1), (signal.SIGTERM, 0)):
        before = set(output.parent.glob(".*.tmp"))
        process = subprocess.Popen([*command, "--workers", "1"], cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            if any(path.stat().st_size for path in set(output.parent.glob(".*.tmp")) - before):
                break
            time.sleep(0.002)
        assert process.poll() is None, "the conversion ended before it could be killed"
        process.send_signal(number)
        process.wait(timeout=30)
        assert not output.exists()
        assert len(list(output.parent.iterdir())) == left
    json_to_parquet(source, output, task="rl")
    assert [path.name for path in output.parent.iterdir()] == ["o.parquet"]


def test_stale_files_of_living_processes_stay(tmp_path: Path) -> None:
    mine = temp_beside(tmp_path / "a.parquet")
    mine.write_text("x")
    dead = tmp_path / mine.name.replace(f".{os.getpid()}.", ".999999999.")
    dead.write_text("x")
    clear_stale(tmp_path)
    assert list(tmp_path.iterdir()) == [mine]


@pytest.mark.parametrize("name", ["back.jsonl", "back.json"])
def test_parquet_to_json_gives_objects_back(name: str, tmp_path: Path, write_lines: Write) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "1"},
                {"role": "assistant", "content": "a"},
            ],
            "tools": [tool],
        },
    ]
    summary = json_to_parquet(write_lines(rows), tmp_path / "o.parquet", task="sft")
    assert summary.has_tools
    assert parquet_to_json(tmp_path / "o.parquet", tmp_path / name) == 2
    assert list(load_rows(tmp_path / name)) == rows


def test_our_own_output_is_a_source_again(write_lines: Write, tmp_path: Path) -> None:
    for task, rows in (
        ("rl", gsm_rows(3)),
        ("sft", gsm_rows(3)),
        ("preference", [{"prompt": "q", "chosen": "a", "rejected": "b"}]),
    ):
        json_to_parquet(write_lines(rows), tmp_path / "one.parquet", task=task)
        json_to_parquet(tmp_path / "one.parquet", tmp_path / "two.parquet", task=task)
        assert read(tmp_path / "two.parquet") == read(tmp_path / "one.parquet")


def test_hostile_parquet_types_end_as_extras_that_verls_reader_takes(tmp_path: Path) -> None:
    import datetime
    import decimal

    import pyarrow as pa

    datasets = pytest.importorskip("datasets")
    table = pa.table(
        {
            "question": pa.array(["a", "b"]).dictionary_encode(),
            "answer": pa.array([1, 2], pa.int32()),
            "when": pa.array([datetime.datetime(2020, 1, 1)] * 2, pa.timestamp("us", "UTC")),
            "exact": pa.array([decimal.Decimal("1.5")] * 2),
            "raw": pa.array([b"\xff\x00"] * 2),
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "list": pa.array([[1], None], pa.large_list(pa.int8())),
            "huge": pa.array([2**64 - 1] * 2, pa.uint64()),
            "deep": pa.array([{"a": {"b": [{"c": 1}]}}] * 2),
            "nothing": pa.nulls(2),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    summary = json_to_parquet(tmp_path / "a.parquet", tmp_path / "o.parquet", task="rl")
    assert summary.rows_out == 2
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "o.parquet"), cache_dir=str(tmp_path / "hf")
    )
    extra = loaded["train"][0]["extra_info"]
    assert (extra["raw"], extra["list"], extra["nothing"]) == (b"\xff\x00", [1], None)
    assert (extra["map"], extra["huge"]) == ('[["k", 1]]', str(2**64 - 1))
    assert extra["deep"] == {"a": {"b": [{"c": 1}]}}


def test_progress_ends_at_the_total(write_lines: Write, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    source = write_lines(gsm_rows(100))
    output = tmp_path / "o.parquet"
    json_to_parquet(source, output, task="rl", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (source.stat().st_size,) * 2
    seen.clear()
    validate(source, "rl", near=False, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (source.stat().st_size,) * 2


def test_common_types() -> None:
    import pyarrow as pa

    assert common_type(pa.int64(), pa.float64()) == pa.float64()
    assert common_type(pa.null(), pa.list_(pa.int64())) == pa.list_(pa.int64())
    assert common_type(pa.bool_(), pa.int64()) == pa.string()
    assert build([{"x": 1}, {"y": "a"}]).to_pylist() == [{"x": 1, "y": None}, {"x": None, "y": "a"}]
