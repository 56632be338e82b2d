"""Flags, config files and input rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from common.evaluation.items import group_columns, groups_of, load_items
from common.evaluation.options import parse
from common.launcher.errors import UserError

BATCH = ["--model_path", "m", "--batch", "--input_file", "x.json"]


def test_defaults_are_those_of_the_documentation() -> None:
    own = parse(["--model_path", "m"])
    found = (own.batch, own.use_vllm, own.temperature, own.max_new_tokens, own.template, own.output_file)
    assert found == (False, False, 0.7, 512, "default", None)
    assert parse(["--model-path=m", *BATCH[2:], "--max-new-tokens", "7"]).max_new_tokens == 7


@pytest.mark.parametrize(
    ("flags", "say"),
    [
        ([], "--model_path is missing"),
        ([*BATCH, "--temprature", "1"], "unknown flag --temprature; did you mean --temperature?"),
        ([*BATCH, "--temperature", "-1"], "--temperature -1 must be between 0 and 100"),
        ([*BATCH, "--n", "4", "--temperature", "0"], "4 times the same answer"),
        ([*BATCH, "--output_file", "r.txt"], "the ending must be one of .xlsx, .json, .jsonl, .csv"),
        ([*BATCH, "--reward_kwargs", "[1]"], "--reward_kwargs must be a JSON object"),
        (["--model_path", "m", "--batch"], "--batch needs --input_file"),
        (["--model_path", "m", "--input_file", "x"], "--input_file needs --batch"),
        (["--model_path", "m", "--single", "--batch"], "not allowed with argument"),
        (["--compare", "a", "--input_file", "x"], "--compare needs two or more"),
        (["--rescore"], "need --output_file"),
        ([*BATCH, "--sampling", "best"], "invalid choice: 'best'"),
    ],
)
def test_mistakes_get_one_line(flags: list[str], say: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(flags)
    assert say in str(caught.value)


def test_config_file_gives_way_to_flags(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "model_path: m\nbatch: true\ninput-file: x.json\ntemperature: 0.2\nreward_kwargs: {a: 1}\n"
    )
    own = parse(["--config", str(path), "--temperature", "0.4"])
    assert (own.model_path, own.batch, own.temperature, own.reward_kwargs) == ("m", True, 0.4, {"a": 1})
    path.write_text("temprature: 1\n")
    with pytest.raises(UserError, match="unknown key temprature; did you mean temperature"):
        parse(["--config", str(path)])


ROWS = [
    {"question": "1+1?", "answer": "2", "level": 1, "tags": ["a", "b"]},
    {"question": "2+2?", "answer": "4", "level": 2, "tags": ["b"]},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        import openpyxl

        book = openpyxl.Workbook()
        book.active.append(list(rows[0]))
        for row in rows:
            book.active.append([str(value) for value in row.values()])
        book.save(path)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet", ".xlsx"])
def test_every_file_type_gives_the_same_items_with_all_columns(tmp_path: Path, suffix: str) -> None:
    items, reason = load_items(str(write(tmp_path / f"d{suffix}", ROWS)))
    assert "question" in reason
    assert [item.messages for item in items] == [[{"role": "user", "content": q}] for q in ("1+1?", "2+2?")]
    assert [item.ground_truth for item in items] == ["2", "4"]
    assert [str(item.row["level"]) for item in items] == ["1", "2"]
    assert items[0].extra_info["split"] == "test"


@pytest.mark.parametrize(
    ("row", "prompt", "truth"),
    [
        ({"prompt": "hi"}, "hi", None),
        ({"query": "hi", "gold": "x"}, "hi", "x"),
        ({"prompt": [{"role": "user", "content": "hi"}], "ground_truth": "x"}, "hi", "x"),
        (
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
            "hi",
            "yo",
        ),
        ({"instruction": "do", "input": "it", "output": "done"}, "do\nit", "done"),
        (
            {
                "data_source": "d",
                "prompt": [{"role": "user", "content": "hi"}],
                "reward_model": {"style": "rule", "ground_truth": ["a", "b"]},
            },
            "hi",
            ["a", "b"],
        ),
        ({"question": "q", "answer": "so\n#### 1,200"}, "q", "1200"),
    ],
)
def test_shapes_of_rows(tmp_path: Path, row: dict, prompt: str, truth: Any) -> None:
    items, _ = load_items(str(write(tmp_path / "d.jsonl", [row])))
    assert items[0].messages == [{"role": "user", "content": prompt}]
    assert items[0].ground_truth == truth


def test_named_fields_limit_and_bad_rows(tmp_path: Path) -> None:
    rows = [{"q1": "hi", "gold": 3}, {"q1": "", "gold": 4}, {"q1": "ho", "gold": 5}]
    path = str(write(tmp_path / "d.jsonl", rows))
    items, _ = load_items(path, prompt_field="q1", answer_field="gold")
    assert [item.ground_truth for item in items] == ["3", None, "5"]
    assert items[1].error.startswith("row 2: prompt") and items[1].row == rows[1]
    assert len(load_items(path, prompt_field="q1", limit=2)[0]) == 2
    with pytest.raises(UserError, match="--prompt_field nope: the file has the columns q1, gold"):
        load_items(path, prompt_field="nope")
    with pytest.raises(UserError, match="format not recognised"):
        load_items(path)
    with pytest.raises(UserError, match="no such file"):
        load_items(str(tmp_path / "none.json"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no rows"):
        load_items(str(tmp_path / "empty.jsonl"))


def test_groups_come_from_the_usual_columns_or_those_named(tmp_path: Path) -> None:
    items, _ = load_items(str(write(tmp_path / "d.jsonl", ROWS)))
    assert group_columns(items, "") == ("level", "tags")
    assert groups_of(items[0], ("level", "tags")) == {"level": ["1"], "tags": ["a", "b"]}
    assert group_columns(items, "answer") == ("answer",)
    with pytest.raises(UserError, match="--group_by nope: no row has it"):
        group_columns(items, "nope")
