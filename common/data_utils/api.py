"""The rest of the public functions: single rows, detection, reading, and the way back to JSON."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data_utils.atomic import replacing
from common.data_utils.chunkwork import convert_items
from common.data_utils.detect import SAMPLE_ROWS, detect, make_plan
from common.data_utils.errors import DataError
from common.data_utils.readers import Bad, Item, as_row, iter_items
from common.data_utils.records import Options, Rejected, Row
from common.data_utils.sources import resolve

if TYPE_CHECKING:
    from common.data_utils.quality import Report


@dataclass(frozen=True)
class Converted:
    """Result of `convert`: every input row is in `rows` or named in `rejected`."""

    rows: list[Row]
    rejected: list[Rejected]
    format: str
    reason: str


def convert(
    rows: Iterable[Any], task: str = "rl", options: Options | None = None, name: str = "rows"
) -> Converted:
    """Convert rows in memory.

    Args:
        rows: objects; anything else is rejected.
        task: "sft", "rl" or "preference".
        options: the conversion options.
        name: stands for the file name in messages and as default data source.

    Raises:
        DataError: the format is not recognised, or an option is wrong.
    """
    items: list[Item] = list(enumerate((as_row(row) for row in rows), 1))
    sample = [row for _, row in items if not isinstance(row, Bad)]
    plan = make_plan(sample, task, options or Options(), name)
    rejected: list[Rejected] = []
    converted, _ = convert_items(items, plan, name, rejected)
    if task == "rl":
        for index, row in enumerate(converted):
            row["extra_info"].setdefault("index", index)
    return Converted(converted, rejected, plan.format, plan.reason)


def load_rows(src: str | os.PathLike[str], encoding: str = "", split: str = "") -> Iterator[Row]:
    """Source rows of any supported file or folder, as they are.

    Raises:
        DataError: the source or one of its rows cannot be read; the row is named.
    """
    resolved = resolve(os.fspath(src), split)
    for source in resolved.files:
        for number, row in iter_items(source, encoding, resolved.split):
            if isinstance(row, Bad):
                raise DataError(f"{source.label}: row {number}: {row.field}: {row.reason}")
            yield row


def detect_format(
    src: str | os.PathLike[str] | Sequence[Row],
    task: str | None = None,
    columns: dict[str, str] | None = None,
) -> tuple[str, str]:
    """(format name, reason) of a source or of rows in memory.

    Raises:
        DataError: not recognised; what the file has and what the formats need is said.
    """
    if isinstance(src, (str, os.PathLike)):
        name, sample = os.fspath(src), list(itertools.islice(load_rows(src), SAMPLE_ROWS))
    else:
        name, sample = "rows", list(src[:SAMPLE_ROWS])
    if not sample:
        raise DataError(f"{name}: holds no readable rows")
    found, _, reason = detect(sample, task, Options(columns=dict(columns or {})), name)
    return found, reason


def parquet_to_json(src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> int:
    """Write a Parquet file as JSON Lines (a name ending in .json: one array); returns the row count.

    Tool schemas and tool-call arguments, which the training schema keeps as JSON text, become objects again.

    Raises:
        DataError: not a readable Parquet file.
    """
    from common.data_utils.verl_rows import restore

    output = Path(dst).expanduser().resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    array = output.suffix == ".json"
    count = 0
    with replacing(output) as temporary, temporary.open("w", encoding="utf-8") as handle:
        for row in load_rows(src):
            handle.write(("[\n" if array else "") if count == 0 else (",\n" if array else "\n"))
            handle.write(json.dumps(restore(row), ensure_ascii=False, default=str))
            count += 1
        handle.write(("\n]\n" if count else "[]\n") if array else ("\n" if count else ""))
    return count


def validate(
    src: str | os.PathLike[str], task: str = "rl", options: Options | None = None, **checks: Any
) -> Report:
    """Quality report of a source; see `quality.check` for the checks and their arguments.

    Raises:
        DataError: the source cannot be read or recognised at all.
    """
    from common.data_utils.quality import check

    return check(os.fspath(src), task, options or Options(), **checks)
