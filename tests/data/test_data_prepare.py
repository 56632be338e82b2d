"""The launcher's door: cache, splits, concurrency, lightness, exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, gsm_rows

from common.data_utils import DataError, Options, Prepared, json_to_parquet, prepare, split_train_val
from common.data_utils import prep as prep_module
from common.data_utils.cache import Digests
from common.data_utils.cli import main
from common.data_utils.split import choose, wanted_rows

Write = Callable[..., Path]


def questions(path: str | None) -> list[str]:
    assert path is not None
    return [row["prompt"][-1]["content"] for row in pq.read_table(path).to_pylist()]


def test_split_is_made_when_there_is_no_validation_data(write_lines: Write, tmp_path: Path) -> None:
    done = prepare(str(write_lines(gsm_rows(200))), "rl", tmp_path / "cache")
    assert (done.train_rows, done.val_rows, done.val_from, done.cached) == (190, 10, "split", False)
    train, val = questions(done.train), questions(done.val)
    assert sorted(train + val) == sorted(row["question"] for row in gsm_rows(200))
    assert {row["extra_info"]["split"] for row in pq.read_table(done.val).to_pylist()} == {"val"}
    assert {row["extra_info"]["split"] for row in pq.read_table(done.train).to_pylist()} == {"train"}


def test_second_call_hits_the_cache(write_lines: Write, tmp_path: Path) -> None:
    source = write_lines(gsm_rows(50))
    first = prepare(str(source), "rl", tmp_path / "cache")
    again = prepare(str(source), "rl", tmp_path / "cache")
    assert again.cached
    same = {**first.as_dict(), "cached": True, "seconds": again.seconds}
    assert again.as_dict() == same


def test_content_decides_and_not_place_or_time(write_lines: Write, tmp_path: Path) -> None:
    source = write_lines(gsm_rows(50))
    first = prepare(str(source), "rl", tmp_path / "cache")
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.copy(source, tmp_path / "elsewhere" / source.name))
    assert prepare(str(moved), "rl", tmp_path / "cache").cached
    source.write_text(source.read_text().replace("What", "Want"))  # the same size
    changed = prepare(str(source), "rl", tmp_path / "cache")
    assert (changed.cached, changed.cache_key == first.cache_key) == (False, False)


def test_options_task_seed_and_size_are_part_of_the_key(write_lines: Write, tmp_path: Path) -> None:
    source, cache = str(write_lines(gsm_rows(50))), tmp_path / "cache"
    calls: list[dict[str, Any]] = [
        {"task": "rl"},
        {"task": "sft"},
        {"task": "rl", "seed": 1},
        {"task": "rl", "val_size": 7},
        {"task": "rl", "options": Options(system_prompt="s")},
        {"task": "rl", "val": source},
        {"task": "rl", "bad_rows": "quarantine"},
    ]
    keys = [prepare(source, cache=cache, **call).cache_key for call in calls]
    assert len(set(keys)) == len(keys)


def test_damaged_entry_is_made_anew(write_lines: Write, tmp_path: Path) -> None:
    source = str(write_lines(gsm_rows(50)))
    first = prepare(source, "rl", tmp_path / "cache")
    Path(first.train).write_bytes(b"cut")
    again = prepare(source, "rl", tmp_path / "cache")
    assert (again.cached, len(questions(again.train))) == (False, first.train_rows)


def test_moved_cache_still_answers_with_paths_that_exist(write_lines: Write, tmp_path: Path) -> None:
    source = str(write_lines(gsm_rows(50)))
    prepare(source, "rl", tmp_path / "cache")
    (tmp_path / "cache").rename(tmp_path / "other")
    done = prepare(source, "rl", tmp_path / "other")
    assert (done.cached, Path(done.train).is_file()) == (True, True)


def test_big_files_are_hashed_once(write_lines: Write, tmp_path: Path) -> None:
    source = write_lines(gsm_rows(5))
    digests = Digests(tmp_path)
    value = digests.of(source)
    digests.save()
    memo = next((tmp_path / "digests").iterdir())
    kept = json.loads(memo.read_text())
    memo.write_text(json.dumps({**kept, "sha256": "remembered"}))
    assert Digests(tmp_path).of(source) == "remembered"
    source.write_text(source.read_text() + "\n")
    assert Digests(tmp_path).of(source) not in ("remembered", value)


def test_given_validation_data_and_its_rejects(write_lines: Write, tmp_path: Path) -> None:
    train = write_lines([*gsm_rows(20), {"question": "", "answer": "#### 1"}], "train.jsonl")
    val = write_lines([*gsm_rows(4), {"question": "x", "answer": ""}], "val.jsonl")
    done = prepare(str(train), "rl", tmp_path / "cache", val=str(val), bad_rows="quarantine")
    assert (done.train_rows, done.val_rows, done.rejected, done.rows_in) == (20, 4, 2, 26)
    for path in (done.rejected_file, done.rejected_val_file):
        assert path is not None
        assert len(Path(path).read_text().splitlines()) == 1


def test_rejects_survive_a_split_and_the_cache(write_lines: Write, tmp_path: Path) -> None:
    source = str(write_lines([*gsm_rows(20), "{bad"]))
    for cached in (False, True):
        done = prepare(source, "sft", tmp_path / "cache", bad_rows="quarantine")
        assert (done.cached, done.rejected, done.rejected_val_file) == (cached, 1, None)
        assert done.rejected_file is not None
        assert json.loads(Path(done.rejected_file).read_text())["row"] == 21


def test_user_errors_of_both_sides_come_together_and_leave_nothing(
    write_lines: Write, tmp_path: Path
) -> None:
    train = write_lines([{"question": "", "answer": "a"}], "train.jsonl")
    val = write_lines([{"foo": 1}], "val.jsonl")
    with pytest.raises(DataError) as caught:
        prepare(str(train), "sft", tmp_path / "cache", val=str(val))
    text = str(caught.value)
    assert "row 1: question: is empty" in text
    assert "format not recognised" in text
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(DataError) as caught:
        prepare("nope.jsonl,neither.jsonl", "sft", tmp_path / "cache")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("task", "size", "text"),
    [
        ("rl", "0", "cannot train with reinforcement learning without validation"),
        ("sft", "50", "50 validation rows cannot be split from 50 rows"),
        ("sft", "x", "is not a number"),
        ("sft", "-1", "must be a share"),
        ("sft", "1.5", "must be a share"),
        ("sft", "nan", "must be a share"),
    ],
)
def test_bad_sizes(task: str, size: str, text: str, write_lines: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=text):
        prepare(str(write_lines(gsm_rows(50))), task, tmp_path / "cache", val_size=size)


def test_no_validation_where_it_is_switched_off(write_lines: Write, tmp_path: Path) -> None:
    done = prepare(str(write_lines(gsm_rows(50))), "sft", tmp_path / "cache", val_size=0)
    assert (done.val, done.val_rows, done.val_from, done.train_rows) == (None, 0, "none", 50)


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [(2, None, 1), (100, "", 5), (10**6, None, 500), (100, 0.5, 50), (100, "7", 7), (3, 0.01, 1)],
)  # fmt: skip
def test_wanted_rows(rows: int, size: Any, expected: int) -> None:
    assert wanted_rows(rows, size) == expected


def test_split_keeps_equal_prompts_together_and_ignores_row_order() -> None:
    keys = np.array([3, 1, 3, 2, 5, 1, 4, 3, 6, 7], dtype=np.uint64)
    mask = choose(keys, 4, seed=0)
    assert mask.sum() <= 4
    assert not set(keys[mask].tolist()) & set(keys[~mask].tolist())
    order = np.array([9, 3, 1, 0, 2, 8, 4, 7, 6, 5])
    assert set(keys[order][choose(keys[order], 4, seed=0)].tolist()) == set(keys[mask].tolist())
    assert any(
        set(keys[choose(keys, 4, seed=seed)].tolist()) != set(keys[mask].tolist()) for seed in range(1, 9)
    )


def test_unsplittable_data_is_refused() -> None:
    with pytest.raises(DataError, match="all rows have the same prompt"):
        choose(np.zeros(9, dtype=np.uint64), 2, 0)
    with pytest.raises(DataError, match="every prompt stands in more than 2 rows"):
        choose(np.repeat(np.arange(3, dtype=np.uint64), 3), 2, 0)


def test_split_of_a_converted_file_agrees_with_prepare(write_lines: Write, tmp_path: Path) -> None:
    source = write_lines([*gsm_rows(60), *gsm_rows(5)])
    done = prepare(str(source), "rl", tmp_path / "cache", val_size=12, seed=3)
    json_to_parquet(source, tmp_path / "all.parquet", task="rl")
    result = split_train_val(tmp_path / "all.parquet", tmp_path / "t.parquet", tmp_path / "v.parquet", 12, 3)
    assert (result["train_rows"], result["val_rows"]) == (53, 12)
    assert pq.read_table(tmp_path / "v.parquet").equals(pq.read_table(done.val))
    assert pq.read_table(tmp_path / "t.parquet").equals(pq.read_table(done.train))
    assert not set(questions(done.train)) & set(questions(done.val))


def test_split_needs_a_training_schema(tmp_path: Path, write_lines: Write) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="convert it first"):
        split_train_val(tmp_path / "a.parquet", tmp_path / "t.parquet", tmp_path / "v.parquet")


def test_tools_name_the_dataset_class(write_lines: Write, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [
        {"messages": [{**chat[0], "content": str(n)}, chat[1]], "tools": [{"name": "f"}]} for n in range(4)
    ]
    done = prepare(str(write_lines(rows)), "sft", tmp_path / "cache")
    assert done.dataset_class is not None
    assert Path(done.dataset_class["path"]).is_file()
    assert done.dataset_class["name"] == "ToolsSFTDataset"


def test_two_launches_at_once_share_one_entry(write_lines: Write, tmp_path: Path) -> None:
    source, cache = write_lines(gsm_rows(3000)), tmp_path / "cache"
    command = [sys.executable, "-m", "common.data_utils", "prepare", "--task", "rl"]
    command += ["--train", str(source), "--cache", str(cache), "--json"]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(3)]
    answers = [json.loads(process.communicate(timeout=60)[0]) for process in running]
    assert {answer["train"] for answer in answers} == {str(next(cache.glob("*/train.parquet")))}
    assert not list(cache.glob(".*"))
    assert len(questions(answers[0]["train"])) == answers[0]["train_rows"] == 2850


def test_loser_of_a_race_takes_the_winners_entry(
    write_lines: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache = str(write_lines(gsm_rows(50))), tmp_path / "cache"
    winner = prepare(source, "rl", cache)
    real, calls = prep_module._load, []

    def late(entry: Path) -> Prepared | None:
        calls.append(entry)
        return None if len(calls) == 1 else real(entry)

    monkeypatch.setattr(prep_module, "_load", late)
    loser = prepare(source, "rl", cache)
    assert (loser.train, len(calls)) == (winner.train, 2)
    assert not list(cache.glob(".*"))


def test_cache_hit_imports_nothing_heavy(write_lines: Write, tmp_path: Path) -> None:
    source = write_lines(gsm_rows(50))
    prepare(str(source), "rl", tmp_path / "cache")
    arguments = [
        "prepare",
        "--task",
        "rl",
        "--train",
        str(source),
        "--cache",
        str(tmp_path / "cache"),
        "--json",
    ]
    code = (
        f"import sys; from common.data_utils.cli import main; main({arguments!r}); "
        "heavy = {'numpy', 'pyarrow', 'pandas', 'torch', 'transformers', 'datasets', 'orjson'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["cached"] is True


def test_command_line(write_lines: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, cache = str(write_lines(gsm_rows(50))), str(tmp_path / "cache")
    arguments = ["prepare", "--task", "rl", "--train", source, "--cache", cache, "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"train", "val", "train_rows", "val_rows", "format", "reason", "cached", "rejected"} <= set(
        printed
    )
    assert main([*arguments, "--columns", '{"question": "zzz"}']) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n"), "no column 'zzz'" in captured.err) == ("", 1, True)
    assert main([*arguments, "--columns", "{"]) == 2
    assert "--columns is not valid JSON" in capsys.readouterr().err


def test_places_that_cannot_be_written_are_one_line(
    write_lines: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(write_lines(gsm_rows(50)))
    (tmp_path / "file").write_text("x")
    blocked = str(tmp_path / "file" / "cache")
    with pytest.raises(DataError, match="Not a directory"):
        prepare(source, "rl", blocked)
    with pytest.raises(DataError, match="Not a directory"):
        json_to_parquet(source, f"{blocked}/o.parquet", task="rl")
    for arguments in (
        ["convert", source, f"{blocked}/o.parquet", "--task", "rl"],
        ["validate", source, "--task", "rl", "--no-near", "--json", "--html", f"{blocked}/r.html"],
        ["prepare", "--train", source, "--task", "rl", "--cache", blocked],
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err.endswith(": Not a directory\n")


def test_overlong_rows_are_counted_once(write_lines: Write, tmp_path: Path, tokenizer_dir: Path) -> None:
    rows = [*gsm_rows(20), {"question": "x" * 500, "answer": "#### 1"}]
    source = str(write_lines(rows))
    for cached in (False, True):
        done = prepare(source, "rl", tmp_path / "cache", tokenizer=str(tokenizer_dir), max_prompt_length=100)
        assert (done.cached, done.overlong is not None) == (cached, True)
        assert done.overlong is not None
        assert sum(done.overlong[name]["over_prompt"] for name in ("train", "val")) == 1
        assert max(done.overlong[name]["longest_prompt"] for name in ("train", "val")) > 500
