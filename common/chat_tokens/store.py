"""Token files: one Parquet file of (input_ids, loss_mask) per data file, tokenizer, template and limit; cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.chat_tokens import turns
from common.data_utils.atomic import replacing, write_text
from common.data_utils.errors import DataError
from common.data_utils.lengths import load_tokenizer, numbered
from common.data_utils.records import Row
from common.data_utils.verl_rows import restore

TRUNCATIONS = ("error", "drop", "cut")
_SHOWN = 5


@dataclass(frozen=True)
class Settings:
    """What decides the tokens of a row.

    Attributes:
        tokenizer: folder or hub id.
        max_length: tokens of a text.
        truncation: "error", "drop" or "cut", for longer texts.
        chat_template: Jinja text that replaces the tokenizer's own; "" keeps that.
        thinking: value of the template's ``enable_thinking`` for rows that have none; None leaves it unset.
    """

    tokenizer: str
    max_length: int
    truncation: str = "error"
    chat_template: str = ""
    thinking: bool | None = None


@dataclass
class Counts:
    """What became of the rows of one file. ``texts == samples + dropped``."""

    rows: int = 0
    texts: int = 0
    samples: int = 0
    tokens: int = 0
    learned: int = 0
    longest: int = 0
    over: int = 0
    cut: int = 0
    dropped: int = 0
    lost_tokens: int = 0
    unseen_tools: int = 0
    problems: list[str] = field(default_factory=list)

    def notes(self, name: str, settings: Settings) -> list[str]:
        """What the user should know, a line each."""
        lines = []
        if self.cut or self.dropped:
            lines.append(
                f"{name}: {self.over} of {self.texts} rows are longer than MAX_LENGTH={settings.max_length} tokens "
                f"(longest: {self.longest}): {self.cut} cut at the end, {self.dropped} left out, "
                f"{self.lost_tokens} tokens lost"
            )
        if self.texts > self.rows:
            lines.append(
                f"{name}: the chat template rewrites earlier turns, so {self.rows} conversations became "
                f"{self.texts} rows, each as the model will see it"
            )
        if self.unseen_tools:
            lines.append(
                f"{name}: {self.unseen_tools} rows use tools that this model's chat template does not print"
            )
        return lines


def _stamp(settings: Settings) -> list[Any]:
    """Names, sizes and times of a tokenizer folder's files, so that an edited one meets no old cache."""
    folder = Path(settings.tokenizer)
    names = sorted(p for p in folder.glob("*") if p.suffix in (".json", ".jinja", ".model", ".txt"))
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in names if p.is_file()]


def tokenize(path: Path, settings: Settings, every: int = 1) -> tuple[Path | None, Counts]:
    """The token file of *path* and its counts, made now or found beside it.

    Args:
        path: Parquet file in verl's SFT schema; its folder takes the result.
        every: above 1, where no file is there yet, each *every*-th row is looked at and none is made (None).

    Raises:
        DataError: rows that cannot be learned or, with truncation "error", are too long: a line each.
    """
    code = hashlib.sha256(
        b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))
    ).hexdigest()
    text = json.dumps([asdict(settings), _stamp(settings), code])
    target = path.with_name(f"tokens-{path.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.parquet")
    memo = target.with_suffix(".json")
    if target.is_file() and memo.is_file():
        return target, Counts(**json.loads(memo.read_text(encoding="utf-8")))
    tokenizer = load_tokenizer(settings.tokenizer) if not settings.chat_template else _with_template(settings)
    if not tokenizer.is_fast:
        raise DataError(
            f"tokenizer {settings.tokenizer}: has no fast version, which the loss mask is made with"
        )
    counts = Counts()
    samples = _samples(path, tokenizer, settings, counts, every)
    if every > 1:
        for _ in samples:
            pass
        _refuse(counts)
        return None, counts
    with replacing(target) as temporary:
        _write(temporary, samples)
        _refuse(counts)
    write_text(memo, json.dumps(asdict(counts)))
    return target, counts


def _refuse(counts: Counts) -> None:
    """Raise DataError for rows that cannot be learned."""
    if counts.problems:
        more = len(counts.problems) - _SHOWN
        raise DataError(*counts.problems[:_SHOWN], *([f"... and {more} more rows"] if more > 0 else []))


def _with_template(settings: Settings) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer)
    tokenizer.chat_template = settings.chat_template
    return tokenizer


def _write(target: Path, batches: Iterator[list[tuple[list[int], list[int]]]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("loss_mask", pa.list_(pa.int8()))])
    with pq.ParquetWriter(target, schema) as writer:
        for batch in batches:
            columns = {"input_ids": [ids for ids, _ in batch], "loss_mask": [mask for _, mask in batch]}
            writer.write_table(pa.table(columns, schema=schema))


def _samples(
    path: Path, tokenizer: Any, settings: Settings, counts: Counts, every: int
) -> Iterator[list[tuple[list[int], list[int]]]]:
    for batch in numbered(path, every):
        texts: list[turns.Rendered] = []
        rows: list[tuple[int, Row]] = []
        for number, stored in batch:
            counts.rows += 1
            row = restore(stored)
            try:
                found = _texts(tokenizer, row, settings)
            except turns.TurnsError as problem:
                counts.problems.append(f"{_place(path, number, row)}: {problem}")
                continue
            counts.unseen_tools += any(name not in found[-1].text for name in _tools(row))
            texts += found
            rows += [(number, row)] * len(found)
        kept = []
        encoded = turns.encode(tokenizer, texts) if texts else []
        for (number, row), sample in zip(rows, encoded, strict=True):
            fitting = _fit(sample, settings, counts, _place(path, number, row))
            if fitting is not None:
                kept.append(fitting)
        yield kept


def _texts(tokenizer: Any, row: Row, settings: Settings) -> list[turns.Rendered]:
    thinking = row.get("enable_thinking")
    render = turns.renderer(tokenizer, row.get("tools"), settings.thinking if thinking is None else thinking)
    return turns.learned(render, row["messages"])


def _tools(row: Row) -> list[str]:
    offered = [tool["function"]["name"] for tool in row.get("tools") or []]
    return offered + [c["function"]["name"] for turn in row["messages"] for c in turn.get("tool_calls") or []]


def _place(path: Path, number: int, row: Row) -> str:
    first = next((str(turn.get("content", "")) for turn in row["messages"] if turn["role"] == "user"), "")
    return f"{path.stem} row {number} ({' '.join(first.split())[:40]!r})"


def _fit(
    sample: tuple[list[int], list[int]], settings: Settings, counts: Counts, place: str
) -> tuple[list[int], list[int]] | None:
    """Apply the length policy to one text; None leaves it out."""
    ids, mask = sample
    counts.texts += 1
    counts.longest = max(counts.longest, len(ids))
    if len(ids) > settings.max_length:
        counts.over += 1
        if settings.truncation == "error":
            counts.problems.append(
                f"{place}: {len(ids)} tokens are more than MAX_LENGTH={settings.max_length}; raise it, or choose "
                "TRUNCATION=drop or cut"
            )
            return None
        keep = settings.max_length if settings.truncation == "cut" and any(mask[: settings.max_length]) else 0
        counts.lost_tokens += len(ids) - keep
        if not keep:
            counts.dropped += 1
            return None
        counts.cut += 1
        ids, mask = ids[:keep], mask[:keep]
    if not any(mask):
        counts.problems.append(f"{place}: no token of it would be learned")
        return None
    counts.samples += 1
    counts.tokens += len(ids)
    counts.learned += sum(mask)
    return ids, mask
