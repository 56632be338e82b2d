"""File types, encodings, row numbers, damaged files."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import gsm_rows

from common.data_utils import DataError, load_rows
from common.data_utils import readers as readers_module
from common.data_utils.encoding import detect_encoding
from common.data_utils.readers import Bad, iter_items
from common.data_utils.sources import file_source, pick_split, resolve, split_list

ROWS = [
    {"question": "“What” is 1 + 1?\r\n— tell", "answer": "two\n#### 2"},
    {"question": "一加一等于几？请回答。", "answer": "二\n#### 2"},
    {"question": 'a "quoted", comma; tab\tand 🎉 emoji', "answer": "x\n#### 3"},
]
PLAIN = ROWS[:2]


def items(path: Path) -> list[tuple[int, Any]]:
    source = file_source(path)
    assert source is not None
    return list(iter_items(source))


def write_csv(path: Path, rows: list[dict[str, str]], encoding: str = "utf-8", delimiter: str = ",") -> None:
    with path.open("w", encoding=encoding, newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_xlsx(path: Path, table: list[list[Any]]) -> None:
    from openpyxl import Workbook

    book = Workbook()
    for cells in table:
        book.active.append(cells)
    book.save(path)


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Rows in the type that the file name says."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith(".xlsx"):
        write_xlsx(path, [list(rows[0]), *[list(row.values()) for row in rows]])
    elif name.endswith((".csv", ".tsv")):
        write_csv(path, rows, delimiter="\t" if name.endswith(".tsv") else ",")
    else:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        text = lines if name.endswith("l") else json.dumps(rows, ensure_ascii=False, indent=1)
        path.write_text(text, encoding="utf-8", newline="")
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))


NAMES = [
    "a.json",
    "a.jsonl",
    "a.ndjson",
    "a.csv",
    "a.tsv",
    "a.xlsx",
    "a.parquet",
    "a.json.gz",
    "a.jsonl.gz",
    "a.csv.gz",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_type_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    rows = [{**row, "question": row["question"].replace("\r\n", "\n")} for row in ROWS]
    write(tmp_path / name, rows)
    assert list(load_rows(tmp_path / name)) == rows


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_encodings_are_detected_and_not_mangled(name: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / name
    rows = [
        {"question": row["question"].replace("“", "").replace("”", "").replace("—", "-"), "answer": "1"}
        for row in PLAIN
    ]
    write(path, rows)
    path.write_bytes(path.read_bytes().decode("utf-8").encode(encoding))
    assert list(load_rows(path)) == rows


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Où est le café près de l'église où l'été dernier Noël a été fêté ? là-bas"),
        ("big5", "請問一加一等於多少？請用中文回答這個問題，並且說明你的理由。"),
        ("shift_jis", "一足す一はいくつですか。日本語で答えてください。よろしくお願いします。"),
        ("euc_kr", "일 더하기 일은 얼마입니까? 한국어로 대답해 주십시오. 감사합니다."),
        ("cp1251", "Сколько будет один плюс один? Ответьте, пожалуйста, по-русски."),
    ],
)
def test_other_encodings_are_asked_for_and_not_guessed(encoding: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, [{"question": text, "answer": "1"}] * 5, encoding)
    with pytest.raises(DataError, match="name its encoding with --encoding"):
        list(load_rows(path))
    assert next(load_rows(path, encoding=encoding))["question"] == text


def test_ascii_for_a_megabyte_then_chinese(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"question": "plain", "answer": "1"}\n'] * 40_000 + [
        '{"question": "中文问题在最后一行", "answer": "1"}\n'
    ]
    path.write_bytes("".join(lines).encode("gb18030"))
    assert path.stat().st_size > 1 << 20
    assert detect_encoding(path) == "gb18030"
    assert list(load_rows(path))[-1]["question"] == "中文问题在最后一行"


def test_windows_line_ends_and_blank_lines_keep_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\r\n  \r\n{"a": 2}\r\n{bad}\r\n{"a": 3}')
    found = items(path)
    assert [(number, row if isinstance(row, dict) else row.field) for number, row in found] == [
        (1, {"a": 1}),
        (4, {"a": 2}),
        (5, "json"),
        (6, {"a": 3}),
    ]


def test_line_numbers_run_on_over_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers_module, "CHUNK_BYTES", 64)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"n": {n}}}\n' + ("\n" if n % 3 == 0 else "") for n in range(100)))
    lines = path.read_text().split("\n")
    assert [(number, row["n"]) for number, row in items(path)] == [
        (number, json.loads(line)["n"]) for number, line in enumerate(lines, 1) if line
    ]


def test_nan_of_pandas_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": NaN, "b": 1}\n')
    row = next(load_rows(tmp_path / "a.jsonl"))
    assert row["a"] != row["a"]


def test_broken_utf8_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps({"a": "好" * 50}, ensure_ascii=False).encode()
    path.write_bytes(good + b'\n{"a": "\xff\xfe"}\n' + good + b"\n")
    number, bad = items(path)[1]
    assert (number, bad.field) == (2, "encoding")
    (tmp_path / "a.csv").write_bytes("a,b\n好,1\n".encode() + b"\xff,2\n" + "好好,3\n".encode() * 9)
    assert [number for number, row in items(tmp_path / "a.csv") if isinstance(row, Bad)] == [3]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"data": PLAIN}),
        json.dumps({"version": 1, "data": PLAIN}, indent=2),
        json.dumps({"train": PLAIN, "test": []}),
        "\n".join(json.dumps(row, indent=1) for row in PLAIN),
        json.dumps({name: {str(n): row[name] for n, row in enumerate(PLAIN)} for name in PLAIN[0]}),
    ],
    ids=["data", "data-with-version", "splits", "pretty-objects", "pandas-columns"],
)
def test_json_shapes(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    assert list(load_rows(tmp_path / "a.json")) == PLAIN


def test_json_array_of_a_named_split(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": PLAIN, "test": PLAIN[:1]}))
    assert list(load_rows(tmp_path / "a.json", split="test")) == PLAIN[:1]
    assert list(load_rows(f"{tmp_path / 'a.json'}:test")) == PLAIN[:1]
    with pytest.raises(DataError, match=r"holds several lists \(train, test\); choose one as FILE:train"):
        list(load_rows(tmp_path / "a.json"))
    with pytest.raises(DataError, match="has no list 'dev'; it has: train, test"):
        list(load_rows(f"{tmp_path / 'a.json'}:dev"))
    write_csv(tmp_path / "a.csv", PLAIN)
    with pytest.raises(DataError, match="only folders, hub datasets and JSON files have splits"):
        list(load_rows(f"{tmp_path / 'a.csv'}:test"))


def test_one_object_is_one_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "q"}]}
    for text in (json.dumps(row), json.dumps(row, indent=2)):
        (tmp_path / "a.json").write_text(text)
        assert list(load_rows(tmp_path / "a.json")) == [row]


def test_huge_single_line_and_element(tmp_path: Path) -> None:
    row = {"a": "x" * (9 << 20), "b": [1] * 10}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"a": "y"}))
    (tmp_path / "a.json").write_text(json.dumps([row, {"a": "y"}]))
    for name in ("a.jsonl", "a.json"):
        assert list(load_rows(tmp_path / name)) == [row, {"a": "y"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": 2}', "the file ends inside its array"),
        ('[{"a": 1},\n{"a": 2]', "not valid JSON near line 2"),
        ('[{"a": 1} {"a": 2}]', r"expected ',' or '\]'"),
        ('[{"a": 1}] x', "text after the closing bracket"),
        ('[{"a": 1},\n\n\n{"a": tru}]', "near line 4"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_json_arrays_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        list(load_rows(tmp_path / "a.json"))


def test_truncated_gzip_is_one_line(tmp_path: Path) -> None:
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in gsm_rows(5000)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"broken gzip file .*; fetch it again"):
        list(load_rows(tmp_path / "a.jsonl.gz"))
    (tmp_path / "b.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="broken gzip file"):
        list(load_rows(tmp_path / "b.jsonl.gz"))


@pytest.mark.parametrize("name", ["a.parquet", "a.xlsx", "a.arrow"])
def test_damaged_binary_files_are_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PAR1 this is not such a file")
    with pytest.raises(DataError, match="is not a readable") as caught:
        list(load_rows(tmp_path / name))
    assert len(caught.value.problems) == 1


def test_csv_rows_count_like_a_sheet_and_bad_widths_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n1,2\n1\n"x\ny",2\n1,2,3\n"open,2\n')
    found = items(tmp_path / "a.csv")
    assert [number for number, _ in found] == [2, 3, 4, 5, 6]
    assert found[2][1] == {"a": "x\ny", "b": "2"}
    assert [row.reason.split(" (")[0] for _, row in found if isinstance(row, Bad)] == [
        "has 1 cells, the header has 2",
        "has 3 cells, the header has 2",
        "cannot be read",
    ]


def test_semicolon_csv(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", PLAIN, delimiter=";")
    assert [row["answer"] for row in load_rows(tmp_path / "a.csv")] == [row["answer"] for row in PLAIN]


@pytest.mark.parametrize("name", ["a.csv", "a.xlsx", "a.parquet"])
def test_duplicate_columns_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "a.csv":
        path.write_text("a,b,a\n1,2,3\n")
    elif name == "a.xlsx":
        write_xlsx(path, [["a", "b", "a"], [1, 2, 3]])
    else:
        table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
        pq.write_table(table, path)
    with pytest.raises(DataError, match="columns with one name: a; rename them"):
        list(load_rows(path))


def test_xlsx_numbers_holes_and_extra_cells(tmp_path: Path) -> None:
    write_xlsx(tmp_path / "a.xlsx", [["q", "a"], ["x", 42], [None, None], ["y", None], ["z", 1, 2]])
    found = items(tmp_path / "a.xlsx")
    assert found[0] == (2, {"q": "x", "a": 42})
    assert found[1] == (4, {"q": "y", "a": None})
    assert (found[2][0], found[2][1].field) == (5, "row")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.jsonl.gz"])
def test_empty_files_have_no_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    assert list(load_rows(tmp_path / name)) == []


def test_folder_of_shards_and_its_splits(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for number, row in enumerate(PLAIN):
        pq.write_table(pa.Table.from_pylist([row]), folder / "data" / f"train-0000{number}-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist([ROWS[2]]), folder / "data" / "test-00000-of-00001.parquet")
    (folder / "README.md").write_text("a card")
    assert list(load_rows(folder)) == PLAIN
    assert list(load_rows(f"{folder}:test")) == [ROWS[2]]
    assert resolve(str(folder)).notes == ("split train is used; not used here: test",)
    assert [item.path.name for item in resolve(str(folder), role="val").files] == [
        "test-00000-of-00001.parquet"
    ]
    with pytest.raises(DataError, match="has no split 'dev'; it has: test, train"):
        resolve(f"{folder}:dev")


def test_dataset_saved_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(PLAIN)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "many")
    table.select([1]).save_to_disk(tmp_path / "mapped")
    assert list(load_rows(tmp_path / "one")) == PLAIN
    assert list(load_rows(tmp_path / "many")) == PLAIN
    assert list(load_rows(tmp_path / "many", split="test")) == PLAIN[:1]
    assert list(load_rows(tmp_path / "mapped")) == PLAIN[1:]


def test_missing_things_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    for name, text in (
        ("nope.jsonl", "no such file or folder"),
        ("empty", "holds no data files"),
        ("a.txt", "unsupported file type"),
    ):
        with pytest.raises(DataError, match=text) as caught:
            resolve(str(tmp_path / name))
        assert len(caught.value.problems) == 1


def test_hub_id_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise ConnectionError("Couldn't reach the Hub\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        DataError, match=r"could not be loaded .Couldn't reach the Hub.; on a machine without"
    ) as caught:
        resolve("nobody/nothing", hub_memo=tmp_path)
    assert "\n" not in str(caught.value)


def test_hub_id_is_loaded_and_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    calls: list[Any] = []
    datasets.Dataset.from_list(PLAIN).save_to_disk(tmp_path / "kept")
    saved = datasets.load_from_disk(tmp_path / "kept")

    def load(*arguments: Any) -> Any:
        calls.append(arguments)
        return datasets.DatasetDict({"train": saved, "test": saved})

    monkeypatch.setattr(datasets, "load_dataset", load)
    first = resolve("owner/name:main", hub_memo=tmp_path / "memo")
    assert resolve("owner/name:main", hub_memo=tmp_path / "memo") == first
    assert calls == [("owner/name", "main")]
    assert first.notes == ("split train is used; not used here: test",)


def test_split_choice_needs_a_name_when_unclear() -> None:
    with pytest.raises(DataError, match="choose one as x:SPLIT"):
        pick_split({"validation": [], "test": []}, "", "train", "x")


def test_commas_join_sources_unless_the_file_has_that_name(tmp_path: Path) -> None:
    odd = tmp_path / "a,b.jsonl"
    odd.write_text("{}")
    assert split_list(str(odd)) == [str(odd)]
    assert split_list("a.jsonl, b.jsonl,") == ["a.jsonl", "b.jsonl"]
