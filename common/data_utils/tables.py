"""Rows of XLSX, Parquet and Arrow files."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

from common.data_utils.errors import DataError
from common.data_utils.readers import Bad, Item, check_header
from common.data_utils.sources import Source

_BATCH = 2000


def xlsx_items(source: Source) -> Iterator[Item]:
    """Rows of the first sheet, numbered as the sheet does (header = 1).

    Raises:
        DataError: not an XLSX file, or an unusable header.
    """
    from openpyxl import load_workbook

    try:
        book = load_workbook(source.path, read_only=True, data_only=True)
    except Exception as problem:  # zip, XML and schema errors have no common type in openpyxl
        raise DataError(f"{source.label}: is not a readable XLSX file ({problem})") from None
    try:
        sheet = book.worksheets[0]
        header: list[str] | None = None
        for number, cells in enumerate(sheet.iter_rows(values_only=True), 1):
            if all(cell is None for cell in cells):
                continue
            if header is None:
                header = check_header(list(cells), source.label)
                continue
            if any(cell is not None for cell in cells[len(header) :]):
                yield (
                    number,
                    Bad(
                        "row",
                        f"has cells beyond the {len(header)} columns of the header",
                        [_plain(cell) for cell in cells],
                    ),
                )
                continue
            padded = (*cells, *[None] * (len(header) - len(cells)))
            yield number, {name: _plain(cell) for name, cell in zip(header, padded, strict=False)}
    finally:
        book.close()


def _plain(cell: Any) -> Any:
    if isinstance(cell, (datetime.datetime, datetime.date, datetime.time)):
        return cell.isoformat()
    return cell


def arrow_items(source: Source) -> Iterator[Item]:
    """Rows of a Parquet file, or of an Arrow file as `datasets` saves them.

    Raises:
        DataError: not such a file, damaged, or with two columns of one name.
    """
    import pyarrow as pa

    number = 0
    try:
        for batch in _batches(source):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as problem:
        first = str(problem).splitlines()[0]
        raise DataError(
            f"{source.label}: is not a readable {source.kind} file after row {number} ({first[:200]})"
        ) from None


def _batches(source: Source) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if source.kind == "parquet":
        with pq.ParquetFile(source.path) as file:
            check_header(file.schema_arrow.names, source.label)
            yield from file.iter_batches(batch_size=_BATCH)
        return
    with pa.memory_map(str(source.path)) as handle:
        try:
            reader: Any = pa.ipc.open_stream(handle)
        except pa.ArrowInvalid:
            handle.seek(0)
            file_reader = pa.ipc.open_file(handle)
            reader = (file_reader.get_batch(position) for position in range(file_reader.num_record_batches))
        for batch in reader:
            for start in range(0, batch.num_rows, _BATCH):
                yield batch.slice(start, _BATCH)
