"""Tokenized pairs beside their data: made once per file, tokenizer and limits, read by every later launch and rank."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.data_utils import lengths, verl_rows
from common.data_utils.atomic import replacing
from dpo import preference_data
from dpo.preference_data import SIDES, Answer, Limits, Pair, Pairs, load_pairs

_NOTES = b"verl_training.notes"


def load(path: str | Path, tokenizer: Any, limits: Limits) -> Pairs:
    """`load_pairs`, from an earlier call's file where there is one; where none can be written, it is made anew.

    Args:
        tokenizer: a fast one; pairs of another kind are not kept.

    Raises:
        PreferenceDataError: as `load_pairs`.
    """
    source, words = Path(path), fingerprint(tokenizer)
    if not words or not source.is_file():
        return load_pairs(source, tokenizer, limits)
    stored = _file(source, words, limits)
    found = _read(stored)
    if found is None:
        found = load_pairs(source, tokenizer, limits)
        with contextlib.suppress(OSError):  # a folder of the user's that is read-only
            _write(stored, found)
    return found


def known(path: str | Path, tokenizer: Any, limits: Limits) -> bool:
    """True where `load` would find an earlier call's file."""
    return _file(Path(path), fingerprint(tokenizer), limits).is_file()


def fingerprint(tokenizer: Any) -> str:
    """Digest of all that decides a fast tokenizer's tokens, its chat template included; "" for a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ""
    parts = json.loads(backend.to_str())
    for name in ("padding", "truncation"):  # state of the last call
        parts.pop(name, None)
    return hashlib.sha256(json.dumps([parts, tokenizer.chat_template]).encode()).hexdigest()


def _file(source: Path, words: str, limits: Limits) -> Path:
    code = [Path(str(module.__file__)).read_text("utf-8") for module in (preference_data, lengths, verl_rows)]
    stat = source.stat()
    parts = [stat.st_size, stat.st_mtime_ns, words, asdict(limits), code, Path(__file__).read_text("utf-8")]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return source.with_name(f"pairs-{source.stem}-{digest}.parquet")


def _write(target: Path, found: Pairs) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def tokens(lists: Sequence[Sequence[int]], kind: pa.DataType) -> pa.Array:
        return pa.array(lists, pa.list_(kind))

    columns = {
        "row": pa.array([pair.row for pair in found.pairs], pa.int64()),
        "prompt": tokens([pair.prompt for pair in found.pairs], pa.int32()),
    }
    for side in SIDES:
        answers: list[Answer] = [getattr(pair, side) for pair in found.pairs]
        columns[side] = tokens([answer.ids for answer in answers], pa.int32())
        columns[f"{side}_learned"] = tokens([answer.learned for answer in answers], pa.bool_())
    table = pa.table(columns).replace_schema_metadata({_NOTES: json.dumps(found.notes).encode()})
    with replacing(target) as temporary:
        pq.write_table(table, temporary)


def _read(stored: Path) -> Pairs | None:
    """The pairs; None where the file is absent or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(stored)
        notes = json.loads(table.schema.metadata[_NOTES])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    answers = [
        map(Answer, _lists(table.column(side)), _lists(table.column(f"{side}_learned"))) for side in SIDES
    ]
    rows = table.column("row").to_pylist()
    return Pairs(list(map(Pair, rows, _lists(table.column("prompt")), *answers)), notes)


def _lists(column: Any) -> Iterator[list[Any]]:
    """The lists of a column, much faster than `to_pylist`."""
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False).tolist()
        ends = chunk.offsets.to_numpy()
        first = int(ends[0])
        for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            yield values[start - first : end - first]
