"""A deterministic train/validation split that keeps equal prompts on one side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.data_utils.chunkwork import prompt_key
from common.data_utils.errors import DataError
from common.data_utils.sink import ParquetSink

DEFAULT_SHARE = 0.05
DEFAULT_MOST = 500
_BATCH = 8192
Keys = npt.NDArray[np.uint64]


def wanted_rows(rows: int, size: str | float | None) -> int:
    """How many validation rows: `size` is a share below 1, else a count; None or "": min(5 %, 500).

    Raises:
        DataError: not a number, negative, or as many as there are rows.
    """
    if size is None or size == "":
        count = min(DEFAULT_MOST, int(rows * DEFAULT_SHARE))
    else:
        try:
            number = float(size)
        except ValueError:
            raise DataError(
                f"--val-size {size!r} is not a number: give a share such as 0.05 or a count such as 500"
            ) from None
        if not 0 < number < float("inf") or (number >= 1 and number != int(number)):
            raise DataError(f"--val-size {size} must be a share between 0 and 1 or a whole number of rows")
        count = int(rows * number) if number < 1 else int(number)
    count = max(1, count)
    if count >= rows:
        raise DataError(
            f"{count} validation rows cannot be split from {rows} rows; lower --val-size or name a --val file"
        )
    return count


def _mixed(keys: Keys, seed: int) -> Keys:
    """Keys in a random order that the seed decides (the finaliser of splitmix64, a bijection)."""
    with np.errstate(over="ignore"):
        value = keys + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))  # type: ignore[no-any-return]


def choose(keys: Keys, count: int, seed: int) -> npt.NDArray[np.bool_]:
    """Which rows go to validation.

    Groups of rows with one key are taken whole, in an order that depends on keys and seed alone (not on the
    order of the rows), until `count` rows are reached; a group that would overshoot is left in train.

    Raises:
        DataError: all rows have one prompt, or every group is larger than `count`.
    """
    mixed = _mixed(keys, seed)
    groups, sizes = np.unique(mixed, return_counts=True)
    if len(groups) < 2:
        raise DataError(
            "all rows have the same prompt: a validation set split from them would leak; name a --val file"
        )
    taken: list[np.uint64] = []
    total = 0
    for group, size in zip(groups.tolist(), sizes.tolist(), strict=True):
        if total + size <= count:
            taken.append(group)
            total += size
            if total == count:
                break
    if not taken:
        raise DataError(
            f"every prompt stands in more than {count} rows: no validation set so small is free of leaks; "
            "raise --val-size or name a --val file"
        )
    return np.isin(mixed, np.array(taken, dtype=np.uint64))


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=_BATCH)


def keys_of(path: Path) -> Keys:
    """Prompt hashes of a Parquet file in a training schema.

    Raises:
        DataError: the file has neither a `prompt` nor a `messages` column of messages.
    """
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        column = "prompt" if "prompt" in names else "messages"
        if column not in names or not pa.types.is_list(file.schema_arrow.field(column).type):
            raise DataError(f"{path}: has no column of messages named prompt or messages; convert it first")
        found = [
            prompt_key(row) for batch in file.iter_batches(columns=[column]) for row in batch.to_pylist()
        ]
    return np.array(found, dtype=np.uint64)


def _relabel(batch: pa.RecordBatch) -> pa.RecordBatch:
    """extra_info.split of validation rows: "train", which the converter put there, becomes "val"."""
    position = batch.schema.get_field_index("extra_info")
    if position < 0 or batch.column(position).type.get_field_index("split") < 0:
        return batch
    extra = batch.column(position)
    names = [field.name for field in extra.type]
    children = extra.flatten()
    own = children[names.index("split")]
    if pa.types.is_string(own.type):
        children[names.index("split")] = pc.if_else(pc.equal(own, "train"), "val", own)
    return batch.set_column(position, "extra_info", pa.StructArray.from_arrays(children, names=names))


def write_split(source: Path, mask: npt.NDArray[np.bool_], train: Path, val: Path) -> tuple[int, int]:
    """Write both sides, in the order of the source; returns their row counts."""
    with ParquetSink(train) as left, ParquetSink(val) as right:
        start = 0
        for batch in _batches(source):
            part = pa.array(mask[start : start + batch.num_rows])
            start += batch.num_rows
            chosen = batch.filter(part)
            if chosen.num_rows:
                right.write(_relabel(chosen))
            rest = batch.filter(pc.invert(part))
            if rest.num_rows:
                left.write(rest)
        left.commit()
        right.commit()
        return left.rows, right.rows


def split_train_val(
    source: str | Path, train: str | Path, val: str | Path, size: str | float | None = None, seed: int = 0
) -> dict[str, Any]:
    """Split a converted Parquet file; rows with the same prompt stay on one side.

    Args:
        source: Parquet in one of the training schemas.
        train, val: files to write.
        size: validation rows: a share below 1, a count from 1, None for min(5 %, 500), at least 1.
        seed: another seed, another choice; the same seed, the same rows, in whatever order they stand.

    Raises:
        DataError: not a training schema, or no leak-free split of that size exists.
    """
    keys = keys_of(Path(source))
    mask = choose(keys, wanted_rows(len(keys), size), seed)
    train_rows, val_rows = write_split(Path(source), mask, Path(train), Path(val))
    return {"train": str(train), "val": str(val), "train_rows": train_rows, "val_rows": val_rows}
