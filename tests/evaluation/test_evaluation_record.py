"""The record survives kills and carries any text; the Excel file made from it opens everywhere."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from openpyxl.utils.escape import unescape

from common.evaluation import cells, export, scores, workbook
from common.evaluation.record import Record, json_line, parse_line
from common.launcher.errors import UserError

# UTF-8, comma, quotes; the last number is the sheet.
CSV_FILTER = "Text - txt - csv (StarCalc):44,34,76,1,,0,false,true,false,false,false,2"
HOSTILE = [
    "=1+1",
    "=cmd|' /C calc'!A0",
    "+1+2",
    "-2+3",
    "@SUM(A1:A9)",
    "http://example.com/=x",
    "{=SUM(A1)}",
    "\x00\x01\x0b\x1b[31mred\x7f",
    "_x0041_ literal",
    "lone \ud800 surrogate \udfff",
    "\ufffe\uffff",
    "x" * 100_000,
    "😀" * 40_000,
    "line\n" * 5_000,
    "a\r\nb\rc",
    "👩‍👩‍👧‍👦 مرحبا 你好 \u202etest",
    " leading and trailing ",
    "'quoted",
    "1e999",
    "TRUE",
    "",
]


def hostile_record(folder: Path) -> Record:
    record = Record(folder / "results.jsonl").open()
    for index, text in enumerate(HOSTILE):
        record.append(
            {
                "uid": f"{index}_0_0",
                "item": index,
                "sample": 0,
                "input": text,
                "output": text,
                "messages": [{"role": "user", "content": text}],
                "gts": text,
                "score": float(index % 2),
                "right": bool(index % 2),
                "answer": text[:50],
                "parts": {"acc": math.nan, "note": text, "=part": math.inf},
                "tokens": 3,
                "finish_reason": "stop",
                "truncated": False,
                "error": text if index % 5 == 4 else "",
                "groups": {"=group": [text[:100] or "none"]},
                "row": {"=column": text, "nan": math.nan, "big": 2**80, "list": [1, {"a": text[:9]}]},
            }
        )
    record.rewrite()
    return record


def written(folder: Path) -> Path:
    record = hostile_record(folder)
    found = scores.collect(record.rows(), len(HOSTILE), 1)
    path = folder / "results.xlsx"
    export.write(path, record, found, {"model": '=HYPERLINK("x")', "command": "./test.sh\x00"})
    return path


def test_hostile_corpus_opens_in_openpyxl_without_one_formula(tmp_path: Path) -> None:
    book = openpyxl.load_workbook(written(tmp_path))
    assert book.sheetnames == ["Summary", "Results", "Groups", "Scores", "Errors"]
    cells_seen = [cell for sheet in book for line in sheet.iter_rows() for cell in line]
    assert [cell.coordinate for cell in cells_seen if cell.data_type == "f"] == []
    assert [cell.coordinate for cell in cells_seen if cell.hyperlink] == []
    table = list(book["Results"].iter_rows(values_only=True))
    names = {name: place for place, name in enumerate(table[0])}
    outputs = [line[names["output"]] for line in table[1:]]
    assert outputs[: len(HOSTILE)][:7] == HOSTILE[:7]
    assert outputs[7] == "\x1b[31mred\x7f".replace("\x1b", "")
    assert unescape(outputs[8]) == "_x0041_ literal"  # escaped, as Excel wants it
    assert outputs[9] == "lone \ufffd surrogate \ufffd"
    assert outputs[14] == "a\nb\nc"
    assert outputs[15] == HOSTILE[15]
    for place in (11, 12, 13):
        assert len(outputs[place].encode("utf-16-le")) // 2 <= cells.CELL_UNITS
        assert outputs[place].count("\n") <= cells.CELL_LINE_FEEDS
        assert f"characters, full text in results.jsonl line {place + 1}]" in outputs[place][-90:]
        assert table[1 + place][names["cut"]] is True
    assert table[1][names["nan"]] == "NaN" and table[1][names["acc"]] == "NaN"
    assert book["Results"].freeze_panes == "A2" and book["Results"].auto_filter.ref


def test_nothing_is_lost_in_the_record(tmp_path: Path) -> None:
    record = hostile_record(tmp_path)
    assert [row["output"] for row in record.rows()] == HOSTILE
    assert [row["row"]["=column"] for row in Record(record.path).scan().rows()] == HOSTILE
    assert next(record.rows())["row"]["big"] == 2**80


@pytest.mark.slow
def test_hostile_corpus_opens_in_libreoffice(tmp_path: Path) -> None:
    office = shutil.which("soffice") or shutil.which("libreoffice")
    if office is None:
        pytest.skip("LibreOffice is not installed")
    path = written(tmp_path)
    done = subprocess.run(
        [office, "--headless", "--convert-to", f"csv:{CSV_FILTER}", "--outdir", str(tmp_path), str(path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = list(csv.reader(next(tmp_path.glob("results*.csv")).open(encoding="utf-8")))
    column = lines[0].index("output")
    assert [line[column] for line in lines[1:8]] == HOSTILE[:7]


def test_the_monitor_opens_the_record(tmp_path: Path) -> None:
    from monitor.samples import read_samples

    lines = [
        line
        for line in hostile_record(tmp_path).path.read_bytes().splitlines(keepends=True)
        if b"\\ud800" not in line
    ]
    step = read_samples(b"".join(lines))
    assert step.bad_lines == 0 and len(step.samples) == len(HOSTILE) - 1
    assert step.samples[0].group == "0" and step.samples[1].score == 1.0


def test_csv_and_json_views(tmp_path: Path) -> None:
    record = hostile_record(tmp_path)
    found = scores.collect(record.rows(), len(HOSTILE), 1)
    export.write(tmp_path / "r.csv", record, found, {})
    export.write(tmp_path / "r.json", record, found, {"model": "m"})
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as handle:
        lines = list(csv.DictReader(handle))
    assert [line["output"] for line in lines[:5]] == [f"'{text}" for text in HOSTILE[:5]]
    assert lines[11]["output"] == HOSTILE[11]
    content = json.loads((tmp_path / "r.json").read_text())
    assert [row["output"] for row in content["results"]] == HOSTILE
    assert content["run"]["figures"]["score"]["value"] == pytest.approx(10 / 21)


def test_rows_beyond_a_sheet_go_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbook, "SHEET_ROWS", 10)
    book = openpyxl.load_workbook(written(tmp_path))
    assert [name for name in book.sheetnames if name.startswith("Results")] == [
        "Results",
        "Results 2",
        "Results 3",
    ]
    assert sum(book[name].max_row - 1 for name in book.sheetnames if name.startswith("Results")) == len(
        HOSTILE
    )


def test_half_written_line_is_cut_off_and_the_later_line_of_a_sample_counts(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(
        json_line({"item": 1, "sample": 0, "output": "old"})
        + json_line({"item": 0, "sample": 0, "output": "a"})
        + json_line({"item": 1, "sample": 0, "output": "new"})
        + b'{"item": 2, "sample": 0, "outp'
    )
    record = Record(path).open()
    assert sorted(record.places) == [(0, 0), (1, 0)]
    record.append({"item": 2, "sample": 0, "output": "c"})
    with pytest.raises(UserError, match="is being written by another"):
        Record(path).open()
    record.rewrite()
    assert [row["output"] for row in Record(path).open().rows()] == ["a", "new", "c"]


def test_another_file_is_not_taken_for_a_record(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "x"}\n')
    with pytest.raises(UserError, match=r"train.jsonl line 1 is no result of test.sh"):
        Record(path).open()
    assert path.read_text() == '{"question": "x"}\n'


@pytest.mark.parametrize("value", ["plain", "\ud800", "😀\x00", "\u2028"])
def test_any_text_survives_one_line(value: str) -> None:
    line = json_line({"text": value, "number": math.inf, "other": {1: [math.nan]}})
    assert line.count(b"\n") == 1
    found: Any = parse_line(line)
    assert (found["text"], found["number"], found["other"]) == (value, "Infinity", {"1": ["NaN"]})
