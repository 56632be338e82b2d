"""Rows of any supported file, one by one and numbered, or as chunks that worker processes can take.

Row numbers: line number in JSON Lines; element number in JSON arrays; row of the sheet (header = 1) in CSV,
TSV and XLSX; row number in Parquet and Arrow. All count from 1.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from common.data_utils.encoding import detect_encoding, open_bytes, unpack_error
from common.data_utils.errors import DataError
from common.data_utils.json_stream import is_wrapped, iter_values, unwrap
from common.data_utils.records import Row
from common.data_utils.sources import TEXT_KINDS, Source

CHUNK_BYTES = 4 << 20
CHUNK_ROWS = 4000


@dataclass(frozen=True)
class Bad:
    """A row that could not even be read."""

    field: str
    reason: str
    raw: Any = None


Item = tuple[int, "Row | Bad"]


@dataclass(frozen=True)
class Chunk:
    """A piece of a file. Exactly one of `span` (bytes of a file), `data` and `items` is set.

    `rows` of line data count from 1 within the chunk; `items` carry their final numbers.
    """

    path: str = ""
    span: tuple[int, int] | None = None
    data: bytes | None = None
    items: list[Item] | None = None


def parse_line(line: bytes) -> Row | Bad:
    """One line of JSON Lines. NaN and Infinity, which pandas writes, are accepted."""
    try:
        value = orjson.loads(line)
    except ValueError as problem:
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as wrong:
            return Bad(
                "encoding",
                f"not valid UTF-8 at byte {wrong.start + 1} of the row",
                line.decode("utf-8", "replace"),
            )
        except (ValueError, RecursionError):
            return Bad("json", f"not valid JSON ({problem})", line.decode("utf-8", "replace"))
    return as_row(value)


def as_row(value: Any) -> Row | Bad:
    """A JSON value as a row; anything but an object is bad."""
    if isinstance(value, dict):
        return value
    kind = {list: "a list", str: "text", type(None): "null", bool: "true/false"}.get(type(value), "a number")
    return Bad("row", f"must be an object, is {kind}", value)


def parse_lines(data: bytes) -> tuple[list[Item], int]:
    """(numbered rows, number of lines) of whole lines; blank lines are counted but are no rows."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    items: list[Item] = []
    for number, line in enumerate(lines, 1):
        if line and not line.isspace():
            items.append((number, parse_line(line)))
    return items, len(lines)


def read_chunk(chunk: Chunk) -> tuple[list[Item], int]:
    """(numbered rows, lines passed); lines is 0 where the numbers are final already."""
    if chunk.items is not None:
        return chunk.items, 0
    if chunk.data is not None:
        return parse_lines(chunk.data)
    assert chunk.span is not None
    with Path(chunk.path).open("rb") as handle:
        handle.seek(chunk.span[0])
        return parse_lines(handle.read(chunk.span[1] - chunk.span[0]))


def chunks(source: Source, encoding: str = "", split: str = "") -> Iterator[Chunk]:
    """A file as chunks, in order.

    Args:
        source: the file.
        encoding: of text files; "" detects it.
        split: for JSON objects that hold one list per split.

    Raises:
        DataError: the file as a whole cannot be read (encoding, broken gzip, JSON syntax, headers).
    """
    try:
        if source.kind == "json":
            encoding = encoding or detect_encoding(source.path, source.packed)
            if is_lines(source, encoding):
                yield from _line_chunks(source, encoding)
                return
        yield from _grouped(_items(source, encoding, split))
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise unpack_error(source.path, problem) from None
    except UnicodeError as problem:
        raise DataError(
            f"{source.label}: not valid {encoding or 'text'} ({problem}); name the encoding with --encoding"
        ) from None
    except LookupError as problem:
        raise DataError(f"{source.label}: {problem}") from None
    except OSError as problem:
        raise DataError(f"{source.label}: cannot be read ({problem.strerror or problem})") from None


def iter_items(source: Source, encoding: str = "", split: str = "") -> Iterator[Item]:
    """All rows of a file with their final numbers."""
    base = 0
    for chunk in chunks(source, encoding, split):
        items, lines = read_chunk(chunk)
        for number, row in items:
            yield base + number, row
        base += lines


def _grouped(items: Iterator[Item]) -> Iterator[Chunk]:
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) >= CHUNK_ROWS:
            yield Chunk(items=group)
            group = []
    if group:
        yield Chunk(items=group)


def _items(source: Source, encoding: str, split: str) -> Iterator[Item]:
    if source.kind in TEXT_KINDS:
        encoding = encoding or detect_encoding(source.path, source.packed)
    if source.kind == "json":
        values = iter_values(_text(source, encoding), source.label)
        return _numbered(as_row(value) for value in unwrap(values, source.label, split))
    if source.kind in ("csv", "tsv"):
        return _csv_items(source, encoding)
    if source.kind == "xlsx":
        from common.data_utils.tables import xlsx_items

        return xlsx_items(source)
    from common.data_utils.tables import arrow_items

    return arrow_items(source)


def _numbered(rows: Iterator[Row | Bad]) -> Iterator[Item]:
    yield from enumerate(rows, 1)


def _text(source: Source, encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(
        open_bytes(source.path, source.packed), encoding=encoding, errors=errors, newline="\n"
    )


def is_lines(source: Source, encoding: str) -> bool:
    """Whether a JSON file is JSON Lines (one object per line) rather than one array or object."""
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    with _text(source, encoding, errors) as handle:
        first = ""
        for line in handle:
            first = line.strip()
            if first:
                break
        if not first.startswith("{"):
            return not first.startswith("[")
        following = next((line for line in handle if not line.isspace()), "").strip()
    try:
        value = json.loads(first)
    except ValueError:
        named_lines = ".jsonl" in source.path.name.lower() or ".ndjson" in source.path.name.lower()
        return named_lines or following.startswith("{")
    return bool(following) or not is_wrapped(value)


def _line_chunks(source: Source, encoding: str) -> Iterator[Chunk]:
    if encoding in ("utf-8", "ascii") and not source.packed:
        yield from _spans(source.path)
        return
    if encoding in ("utf-8", "ascii", "utf-8-sig"):
        with open_bytes(source.path, source.packed) as handle:
            if encoding == "utf-8-sig":
                handle.read(3)
            while block := handle.read(CHUNK_BYTES):
                yield Chunk(data=block + handle.readline())
        return
    with _text(source, encoding) as text:
        while lines := text.readlines(CHUNK_BYTES):
            yield Chunk(data="".join(lines).encode("utf-8", "surrogatepass"))


def _spans(path: Path) -> Iterator[Chunk]:
    with path.open("rb") as handle:
        size = handle.seek(0, io.SEEK_END)
        start = 0
        while start < size:
            handle.seek(min(start + CHUNK_BYTES, size))
            if handle.tell() < size:
                handle.readline()
            end = handle.tell()
            yield Chunk(path=str(path), span=(start, end))
            start = end


def _csv_items(source: Source, encoding: str) -> Iterator[Item]:
    csv.field_size_limit(sys.maxsize)
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    with io.TextIOWrapper(
        open_bytes(source.path, source.packed), encoding=encoding, errors=errors, newline=""
    ) as handle:
        delimiter = "\t" if source.kind == "tsv" else _delimiter(handle)
        reader = csv.reader(handle, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        number = 0
        while True:
            number += 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as problem:
                if header is None:
                    raise DataError(f"{source.label}: its header cannot be read ({problem})") from None
                yield number, Bad("csv", f"cannot be read ({problem}); a quote may be open from here on")
                continue
            if not cells:
                continue
            if header is None:
                header = check_header(cells, source.label)
                continue
            yield number, csv_row(cells, header)


def csv_row(cells: list[str], header: list[str]) -> Row | Bad:
    """Cells under their header; a row of another width or with undecodable bytes is bad."""
    if len(cells) != len(header):
        return Bad("row", f"has {len(cells)} cells, the header has {len(header)}", cells)
    joined = "".join(cells)
    if not joined.isascii():
        try:
            joined.encode("utf-8")
        except UnicodeEncodeError:
            shown = [cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for cell in cells]
            return Bad("encoding", "not valid UTF-8", shown)
    return dict(zip(header, cells, strict=True))


def check_header(cells: list[Any], label: str) -> list[str]:
    """Column names.

    Raises:
        DataError: a name is empty or stands twice.
    """
    names = ["" if cell is None else str(cell).strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{label}: columns with one name: {', '.join(name or '(empty)' for name in twice)}; rename them"
        )
    if "" in names:
        raise DataError(f"{label}: column {names.index('') + 1} has no name in the header row")
    return names


def _delimiter(handle: io.TextIOWrapper) -> str:
    """The separator of a CSV file: the one that its header line uses most."""
    line = handle.readline()
    handle.seek(0)
    counts = {mark: line.count(mark) for mark in (",", ";", "\t", "|")}
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else ","
