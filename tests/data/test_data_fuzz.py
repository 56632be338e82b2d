# ruff: noqa: E501 (one row of a table, one line)
"""Ten thousand hostile rows over all formats, types and targets: no crash, and every row accounted for."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from common.data_utils import DataError, json_to_parquet
from common.data_utils.formats import FORMATS

SEED = 20_250_905
TEXTS = [
    "", " ", "\n\t", "ok", "é", "中文", "🎉", "\u202e", "\x00", "\ud800", "\ufffd", "####", "#### 1", "\\boxed{", "\\boxed{2}",
    "[", "{", "[{", '[{"role": "user", "content": "q"}]', '{"a": ', "NaN", "null", "\n\nHuman: a\n\nAssistant: b", "\r\n", "x" * 5000,
    "<|im_end|>", "{question}", "=1+1", "'", '"', ",", "1e400", "-0",
]  # fmt: skip
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    42,
    3.5,
    1e308,
    math.nan,
    math.inf,
    2**63,
    2**70,
    [],
    {},
    [[]],
    [{}],
    [None],
    {"a": {}},
]
ROLES = [
    "user",
    "assistant",
    "system",
    "tool",
    "human",
    "gpt",
    "function_call",
    "observation",
    "alien",
    "",
    None,
    7,
]


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(TEXTS)
    if kind < 0.75 or depth > 2:
        return rng.choice(VALUES)
    if kind < 0.87:
        return [value(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {
        rng.choice(["role", "content", "from", "value", "text", "x"]): value(rng, depth + 1)
        for _ in range(rng.randrange(3))
    }


def turn(rng: random.Random) -> Any:
    if rng.random() < 0.1:
        return value(rng)
    keys = ("from", "value") if rng.random() < 0.5 else ("role", "content")
    made = {keys[0]: rng.choice(ROLES), keys[1]: value(rng) if rng.random() < 0.4 else "fine"}
    if rng.random() < 0.2:
        made["tool_calls"] = value(rng)
    return made


def hostile(rng: random.Random, name: str) -> Any:
    """A row of the format, mostly damaged in some field."""
    if rng.random() < 0.03:
        return value(rng)
    item = FORMATS[name]
    row = json.loads(item.example)
    for field in list(row):
        if rng.random() < 0.35:
            row[field] = value(rng)
    for field in (
        *item.optional,
        "system",
        "tools",
        "ground_truth",
        "extra_info",
        "data_source",
        "odd column",
    ):
        if rng.random() < 0.1:
            row[field] = value(rng)
    for field in ("messages", "conversations", "prompt"):
        if field in row and rng.random() < 0.5:
            row[field] = [turn(rng) for _ in range(rng.randrange(4))]
    if rng.random() < 0.05 and row:
        row.pop(rng.choice(list(row)))
    return row


def encode(row: Any, rng: random.Random) -> str:
    text = json.dumps(row, ensure_ascii=rng.random() < 0.5)
    return text[: rng.randrange(len(text))] if rng.random() < 0.02 else text


def account(source: Path, output: Path, task: str, name: str, expected: int) -> int:
    """Convert under quarantine; check that output + rejects = input, with every number once."""
    output.unlink(missing_ok=True)
    rejects = output.with_name(f"{output.stem}.rejected.jsonl")
    rejects.unlink(missing_ok=True)
    try:
        summary = json_to_parquet(source, output, task=task, format=name, bad_rows="quarantine", workers=1)
    except DataError as problem:
        assert not output.exists()
        assert problem.problems  # noqa: PT017 (a refusal is one of two lawful outcomes)
        return 0
    assert summary.rows_in == summary.rows_out + summary.rejected == expected
    assert pq.read_metadata(output).num_rows == summary.rows_out
    named = [json.loads(line) for line in rejects.open(encoding="utf-8")] if summary.rejected else []
    assert len(named) == summary.rejected
    assert len({entry["row"] for entry in named}) == len(named)
    assert all(entry["reason"] and entry["field"] for entry in named)
    return summary.rows_out


CASES = [(name, task) for name, item in FORMATS.items() for task in item.tasks]
ROWS_PER_CASE = 10_000 // len(CASES) + 1


@pytest.mark.parametrize(("name", "task"), CASES)
def test_jsonl(name: str, task: str, tmp_path: Path) -> None:
    rng = random.Random(f"{SEED}{name}{task}")
    good = FORMATS[name].example  # the first row is sound, so that the columns are known
    lines = [good] + [encode(hostile(rng, name), rng) for _ in range(ROWS_PER_CASE)]
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    rows = sum(not line.isspace() and bool(line) for line in "\n".join(lines).split("\n"))
    out = account(path, tmp_path / "o.parquet", task, name, rows)
    if (name, task) != ("verl", "sft"):
        assert out > 0


@pytest.mark.parametrize("name", ["qa", "alpaca", "preference", "messages"])
def test_json_array(name: str, tmp_path: Path) -> None:
    rng = random.Random(f"{SEED}{name}")
    rows = [json.loads(FORMATS[name].example)] + [hostile(rng, name) for _ in range(200)]
    (tmp_path / "a.json").write_bytes(json.dumps(rows).encode())
    assert account(tmp_path / "a.json", tmp_path / "o.parquet", FORMATS[name].tasks[0], name, 201) > 0


@pytest.mark.parametrize("name", ["qa", "alpaca", "preference", "messages"])
def test_csv(name: str, tmp_path: Path) -> None:
    rng = random.Random(f"{SEED}{name}")
    example = json.loads(FORMATS[name].example)
    columns = [*example, "odd"]
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(columns)
        writer.writerow(
            [json.dumps(cell) if isinstance(cell, list) else cell for cell in example.values()] + ["x"]
        )
        for _ in range(200):
            cells = [rng.choice(TEXTS).replace("\x00", "").replace("\ud800", "\udcff") for _ in columns]
            writer.writerow(cells[: rng.choice([2, len(columns), len(columns), len(columns) + 1])] or ["x"])
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as handle:
        rows = sum(bool(cells) for cells in csv.reader(handle)) - 1
    assert account(path, tmp_path / "o.parquet", FORMATS[name].tasks[0], name, rows) > 0


def test_random_bytes_never_crash(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    for number in range(150):
        suffix = rng.choice(
            [".json", ".jsonl", ".csv", ".tsv", ".xlsx", ".parquet", ".arrow", ".jsonl.gz", ".json.gz"]
        )
        path = tmp_path / f"{number}{suffix}"
        alphabet = rng.choice([bytes(range(256)), b'{}[]",:\n ab01\\', b'{"question": "q", "answer": "a"}\n'])
        path.write_bytes(bytes(rng.choices(alphabet, k=rng.randrange(400))))
        try:
            json_to_parquet(path, tmp_path / "o.parquet", task="sft", bad_rows="quarantine", workers=1)
        except DataError as problem:
            assert all(line and "\n" not in line for line in problem.problems)  # noqa: PT017
