"""One chunk of work, in this process or in a worker: read, convert, build, account for every row."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field

import pyarrow as pa

from common.data_utils.errors import RowError
from common.data_utils.readers import Bad, Chunk, Item, read_chunk
from common.data_utils.records import Plan, Rejected, Row
from common.data_utils.table import build
from common.data_utils.targets import convert_row, prompt_text


@dataclass
class ChunkResult:
    """The outcome of a chunk: `rows_in` = rows of `batch` + `rejected`.

    `lines` is what the row numbers of the next chunk start after; `keys` are 64-bit hashes of the prompts,
    in row order (only when asked for).
    """

    batch: pa.RecordBatch | None = None
    rejected: list[Rejected] = field(default_factory=list)
    rows_in: int = 0
    lines: int = 0
    keys: bytes = b""


def prompt_key(row: Row) -> int:
    """64-bit hash of a training row's prompt."""
    return int.from_bytes(hashlib.blake2b(prompt_text(row).encode(), digest_size=8).digest(), "little")


def work(chunk: Chunk, plan: Plan, label: str, want_keys: bool) -> ChunkResult:
    """Convert one chunk. Rejected rows of line data are numbered within it; `pipeline` makes them final."""
    items, lines = read_chunk(chunk)
    result = ChunkResult(rows_in=len(items), lines=lines)
    rows, numbers = convert_items(items, plan, label, result.rejected)
    if rows:
        result.batch = _batch_of(items, rows, numbers, label, result.rejected)
    if want_keys and rows:
        result.keys = array("Q", [prompt_key(row) for row in rows]).tobytes()
    return result


def convert_items(
    items: list[Item], plan: Plan, label: str, rejected: list[Rejected]
) -> tuple[list[Row], list[int]]:
    """(training rows, their source row numbers); the others are appended to `rejected`."""
    rows: list[Row] = []
    numbers: list[int] = []
    for number, item in items:
        if isinstance(item, Bad):
            rejected.append(Rejected(label, number, item.field, item.reason, item.raw))
            continue
        try:
            rows.append(convert_row(item, plan))
        except RowError as problem:
            rejected.append(Rejected(label, number, problem.field, problem.reason, item))
        except RecursionError:
            rejected.append(Rejected(label, number, "row", "is nested too deeply", None))
        else:
            numbers.append(number)
    return rows, numbers


def _batch_of(
    items: list[Item], rows: list[Row], numbers: list[int], label: str, rejected: list[Rejected]
) -> pa.RecordBatch | None:
    """The batch; where Arrow refuses, the offending rows are found one by one and rejected.

    `rows` is reduced in place to what the batch holds.
    """
    try:
        return build(rows)
    except (UnicodeEncodeError, pa.ArrowException, OverflowError, TypeError, ValueError, RecursionError):
        pass
    sources = dict(items)
    kept: list[Row] = []
    for row, number in zip(rows, numbers, strict=True):
        try:
            build([row])
            kept.append(row)
        except (
            UnicodeEncodeError,
            pa.ArrowException,
            OverflowError,
            TypeError,
            ValueError,
            RecursionError,
        ) as problem:
            reason = (
                "holds half of a surrogate pair, which is not text"
                if isinstance(problem, UnicodeEncodeError)
                else str(problem)
            )
            rejected.append(Rejected(label, number, "row", reason, sources[number]))
    rows[:] = kept
    rejected.sort(key=lambda entry: entry.row)
    return build(kept) if kept else None
