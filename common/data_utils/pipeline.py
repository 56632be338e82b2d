"""Files in, one Parquet file out: plans each source, streams its chunks, accounts for every row."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from common.data_utils.atomic import temp_beside
from common.data_utils.chunkwork import ChunkResult
from common.data_utils.detect import SAMPLE_ROWS, make_plan
from common.data_utils.errors import DataError, no_traceback
from common.data_utils.pool import Pool
from common.data_utils.readers import Bad, chunks, iter_items
from common.data_utils.records import POLICIES, Options, Plan, Rejected
from common.data_utils.sink import ParquetSink
from common.data_utils.sources import Resolved, resolve, split_list
from common.data_utils.table import has_tools, with_index

SHOWN_ROWS = 20
# Below this many bytes the two worker processes cost more time to start than they save.
_PARALLEL_BYTES = 24 << 20
_MAX_WORKERS = 8
Progress = Callable[[int, int], None]


@dataclass
class SourceSummary:
    """What one named source gave."""

    name: str
    format: str
    reason: str
    columns: dict[str, str]
    notes: list[str]
    rows_in: int = 0
    rows_out: int = 0
    rejected: int = 0


@dataclass
class Summary:
    """What a conversion did; `rows_in == rows_out + rejected` always holds."""

    output: str
    task: str
    rows_in: int = 0
    rows_out: int = 0
    rejected: int = 0
    rejected_file: str | None = None
    sources: list[SourceSummary] = field(default_factory=list)
    has_tools: bool = False
    data_sources: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class RejectFile:
    """`<name>.rejected.jsonl` beside the output: one line per rejected row, with its reason and its data."""

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(output.name.removesuffix(".parquet") + ".rejected.jsonl")
        self.count = 0
        self._part: Path | None = None
        self._handle: IO[str] | None = None

    def write(self, rejected: Sequence[Rejected]) -> None:
        """Add rows."""
        if rejected and self._handle is None:
            self._part = temp_beside(self.path)
            self._handle = self._part.open("w", encoding="utf-8", errors="backslashreplace")
        for entry in rejected:
            assert self._handle is not None
            self._handle.write(json.dumps(asdict(entry), ensure_ascii=False, default=str) + "\n")
        self.count += len(rejected)

    def commit(self) -> str | None:
        """Put the file in its place; with nothing rejected, remove the one an earlier run left."""
        if self._handle is None:
            self.path.unlink(missing_ok=True)
            return None
        self._handle.close()
        assert self._part is not None
        self._part.replace(self.path)
        return str(self.path)

    def discard(self) -> None:
        """Drop what was not committed."""
        if self._handle is not None:
            self._handle.close()
        if self._part is not None:
            self._part.unlink(missing_ok=True)


def plan_source(resolved: Resolved, task: str, options: Options, split: str = "train") -> Plan:
    """The plan for all files of one source, from the first readable rows.

    Raises:
        DataError: see `detect.make_plan`; also when no row of the sample can be read.
    """
    items = itertools.chain.from_iterable(
        iter_items(item, options.encoding, resolved.split) for item in resolved.files
    )
    sample = list(itertools.islice(items, SAMPLE_ROWS))
    rows = [row for _, row in sample if not isinstance(row, Bad)]
    if sample and not rows:
        number, bad = next((number, row) for number, row in sample if isinstance(row, Bad))
        raise DataError(
            f"{resolved.name}: none of the first {len(sample)} rows can be read; "
            f"row {number}: {bad.field}: {bad.reason}"
        )
    plan = make_plan(rows, task, options, resolved.name, split)
    return replace(plan, notes=(*resolved.notes, *plan.notes))


def _worker_count(resolved: Sequence[Resolved], workers: int) -> int:
    if workers:
        return workers if workers > 1 else 0
    size = sum(item.path.stat().st_size for source in resolved for item in source.files)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MAX_WORKERS) if size > _PARALLEL_BYTES and cores > 1 else 0


def stream(
    resolved: Resolved, plan: Plan, pool: Pool, want_keys: bool = False
) -> Iterator[tuple[ChunkResult, int]]:
    """(result with final row numbers, bytes of source read so far) per chunk of a source."""
    done = 0
    for source in resolved.files:
        base, size, start = 0, source.path.stat().st_size, done
        pieces = chunks(source, plan.options.encoding, resolved.split)
        for result in pool.run(pieces, plan, source.label, want_keys):
            if base:
                result.rejected = [replace(entry, row=entry.row + base) for entry in result.rejected]
            base += result.lines
            done = min(done + (result.batch.nbytes if result.batch is not None else 0), start + size)
            yield result, done
        done = start + size


def convert_sources(
    sources: Sequence[Resolved],
    output: Path,
    task: str,
    options: Options,
    *,
    bad_rows: str = "error",
    split: str = "train",
    workers: int = 0,
    progress: Progress | None = None,
    keys: list[bytes] | None = None,
) -> Summary:
    """Convert sources into one Parquet file; see `json_to_parquet` for the meaning of the arguments.

    Args:
        split: value of extra_info.split.
        keys: if given, receives the prompt hashes of the output rows (little-endian uint64) per chunk.

    Raises:
        DataError: nothing can be converted, or rows are bad under the policy "error"; nothing is written.
    """
    if bad_rows not in POLICIES:
        raise DataError(f"unknown policy for bad rows {bad_rows!r}; policies: {', '.join(POLICIES)}")
    started = time.perf_counter()
    plans = [plan_source(source, task, options, split) for source in sources]
    total = sum(item.path.stat().st_size for source in sources for item in source.files)
    summary = Summary(str(output), task)
    first: list[Rejected] = []
    labels: set[str] = set()
    rejects = RejectFile(output)
    try:
        with no_traceback(output), ParquetSink(output) as sink, Pool(_worker_count(sources, workers)) as pool:
            before = 0
            for source, plan in zip(sources, plans, strict=True):
                part = SourceSummary(source.name, plan.format, plan.reason, plan.columns, list(plan.notes))
                summary.sources.append(part)
                for result, done in stream(source, plan, pool, keys is not None):
                    part.rows_in += result.rows_in
                    part.rejected += len(result.rejected)
                    first += result.rejected[: SHOWN_ROWS - len(first)]
                    if bad_rows == "quarantine":
                        rejects.write(result.rejected)
                    if result.batch is not None and not (first and bad_rows == "error"):
                        sink.write(with_index(result.batch, sink.rows))
                        if task == "rl":
                            labels.update(result.batch.column("data_source").unique().to_pylist())
                        part.rows_out += result.batch.num_rows
                        if keys is not None:
                            keys.append(result.keys)
                    if progress is not None:
                        progress(before + done, total)
                before += sum(item.path.stat().st_size for item in source.files)
            for name in ("rows_in", "rows_out", "rejected"):
                setattr(summary, name, sum(getattr(part, name) for part in summary.sources))
            _refuse(summary, first, bad_rows)
            assert sink.schema is not None
            summary.has_tools = has_tools(sink.schema)
            sink.commit()
        summary.rejected_file = rejects.commit()
    finally:
        rejects.discard()
    summary.data_sources = sorted(labels)
    summary.seconds = round(time.perf_counter() - started, 3)
    return summary


def _refuse(summary: Summary, first: list[Rejected], bad_rows: str) -> None:
    lines = [entry.line() for entry in first]
    if summary.rejected > len(lines):
        lines.append(f"... and {summary.rejected - len(lines)} more rows")
    if summary.rejected and bad_rows == "error":
        raise DataError(
            *lines,
            f"{summary.rejected} of {summary.rows_in} rows cannot be used, nothing was written: mend them, "
            "or keep the good ones and set the others aside with --bad-rows quarantine",
        )
    if not summary.rows_out:
        names = ", ".join(part.name for part in summary.sources)
        raise DataError(*lines, f"{names}: no usable row among {summary.rows_in}, nothing was written")


def json_to_parquet(
    src: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    dst: str | os.PathLike[str],
    task: str = "rl",
    format: str = "auto",
    *,
    columns: dict[str, str] | None = None,
    bad_rows: str = "error",
    system_prompt: str = "",
    prompt_template: str = "",
    data_source: str = "",
    ability: str = "",
    agent_name: str = "",
    answer_style: str = "auto",
    ground_truth: str = "required",
    encoding: str = "",
    split: str = "",
    workers: int = 0,
    progress: Progress | None = None,
) -> Summary:
    """Convert data of any supported format and file type into verl's Parquet schema.

    Args:
        src: file, folder, hub id, a list of them, or several joined by commas.
        dst: the Parquet file to write; it appears whole or not at all.
        task: "sft", "rl" or "preference".
        format: a source format of `formats.FORMATS`, or "auto".
        bad_rows: "error" refuses the whole file, naming the first 20; "quarantine" writes the bad rows with
            their reasons to `<dst name>.rejected.jsonl`.
        workers: processes; 0 chooses (both cores for files over 24 MB), 1 stays in this process.
        progress: called with (bytes done, bytes in all).

    The other arguments are those of `records.Options`.

    Returns:
        Counts, formats with the reason for each, and notes.

    Raises:
        DataError: with one line per problem; nothing was written.
    """
    options = Options(
        format=format,
        columns=dict(columns or {}),
        system_prompt=system_prompt,
        prompt_template=prompt_template,
        data_source=data_source,
        ability=ability,
        agent_name=agent_name,
        answer_style=answer_style,
        ground_truth=ground_truth,
        encoding=encoding,
        split=split,
    )
    names = (
        split_list(os.fspath(src))
        if isinstance(src, (str, os.PathLike))
        else [os.fspath(item) for item in src]
    )
    output = Path(dst).expanduser().resolve()
    if not names:
        raise DataError("no data named: give a file, a folder or a hub id")
    sources = [resolve(name, split) for name in names]
    return convert_sources(
        sources, output, task, options, bad_rows=bad_rows, workers=workers, progress=progress
    )
