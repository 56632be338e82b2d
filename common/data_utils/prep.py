"""What a launcher calls: sources in, training and validation Parquet out, converted once and cached.

A cache hit imports neither pyarrow nor numpy: everything heavy is imported where a conversion begins.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from common.data_utils.atomic import clear_stale, temp_beside, write_text
from common.data_utils.cache import Digests, cache_key
from common.data_utils.errors import DataError, no_traceback
from common.data_utils.records import POLICIES, TASKS, Options
from common.data_utils.sources import Resolved, resolve, split_list

_MANIFEST = "manifest.json"


@dataclass
class Prepared:
    """Where the training data is and how it came to be.

    Attributes:
        train, val: absolute Parquet paths; `val` is None when validation was switched off.
        val_from: "given", "split" (from train) or "none".
        rows_in: source rows, train and validation; `rows_in == train_rows + val_rows + rejected`.
        rejected_file: of train, if rows were quarantined; `rejected_val_file` likewise.
        data_sources: values of the `data_source` column (rl).
        dataset_class: {"path", "name"} for verl's data.custom_cls when rows carry tools, else None.
        overlong: with a tokenizer: rows longer than the limits, by file.
    """

    task: str
    train: str
    val: str | None
    train_rows: int
    val_rows: int
    val_from: str
    format: str
    reason: str
    rows_in: int
    rejected: int
    rejected_file: str | None
    rejected_val_file: str | None
    cached: bool
    cache_key: str
    notes: list[str] = field(default_factory=list)
    data_sources: list[str] = field(default_factory=list)
    dataset_class: dict[str, str] | None = None
    overlong: dict[str, Any] | None = None
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def prepare(
    train: str | Sequence[str],
    task: str,
    cache: str | os.PathLike[str],
    *,
    val: str | Sequence[str] = "",
    val_size: str | float | None = None,
    seed: int = 0,
    bad_rows: str = "error",
    options: Options | None = None,
    tokenizer: str = "",
    max_prompt_length: int | None = None,
    max_length: int | None = None,
    progress: Any = None,
) -> Prepared:
    """Convert (or find in the cache) the data of a run.

    Args:
        train, val: sources (see `json_to_parquet`); without `val` a validation set is split from train.
        task: "sft", "rl" or "preference".
        cache: folder of the cache; entries appear whole, so runs may share it at the same time.
        val_size: rows to split off: a share, a count, None for min(5 %, 500); 0 makes no validation set
            (not for "rl", where verl cannot run without).
        seed: of the split.
        bad_rows: "error" or "quarantine".
        tokenizer, max_prompt_length, max_length: if given, rows over the limits are counted.
        progress: called with (bytes done, bytes in all) during a conversion.

    Raises:
        DataError: one line per problem; the cache holds no entry for the request then.
    """
    started = time.perf_counter()
    options = options or Options()
    if task not in TASKS:
        raise DataError(f"unknown task {task!r}; tasks: {', '.join(TASKS)}")
    if bad_rows not in POLICIES:
        raise DataError(f"unknown policy for bad rows {bad_rows!r}; policies: {', '.join(POLICIES)}")
    root = Path(cache).expanduser().resolve()
    sizes = "" if val_size is None else str(val_size).strip()
    wants_val = bool(val) or sizes not in ("0", "0.0")
    if task == "rl" and not wants_val:
        raise DataError("--val-size 0: verl cannot train with reinforcement learning without validation data")
    train_sources = _resolve(train, options, "train", root)
    val_sources = _resolve(val, options, "val", root) if val else []
    digests = Digests(root)
    settings: dict[str, Any] = {"task": task, "bad_rows": bad_rows, "options": options.as_dict()}
    settings |= {"split": None if val_sources else [sizes, seed], "train": len(train_sources)}
    key = cache_key([*train_sources, *val_sources], digests, settings)
    entry = root / key
    found = _load(entry)
    if found is None:
        with no_traceback(root):
            found = _build(
                entry, train_sources, val_sources, task, options, bad_rows, sizes, seed, wants_val, progress
            )
            digests.save()
    else:
        found.cached = True
    if tokenizer:
        found.overlong = _overlong(entry, found, tokenizer, max_prompt_length, max_length)
    found.seconds = round(time.perf_counter() - started, 3)
    return found


def _resolve(names: str | Sequence[str], options: Options, role: str, root: Path) -> list[Resolved]:
    listed = split_list(names) if isinstance(names, str) else list(names)
    if not listed:
        raise DataError(f"no {role} data named: give a file, a folder or a hub id")
    problems: list[str] = []
    found = []
    for name in listed:
        try:
            found.append(resolve(name, options.split, role, root / "hub"))
        except DataError as problem:
            problems += problem.problems
    if problems:
        raise DataError(*problems)
    return found


def _load(entry: Path) -> Prepared | None:
    """The entry, if it is whole."""
    try:
        kept = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))
        sizes = kept.pop("sizes")
        if all((entry / name).stat().st_size == size for name, size in sizes.items()):
            known = {item.name for item in fields(Prepared)}
            found = Prepared(**{name: value for name, value in kept.items() if name in known})
            for name in ("train", "val", "rejected_file", "rejected_val_file"):
                value = getattr(found, name)
                setattr(found, name, None if value is None else str(entry / Path(value).name))
            return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # absent or damaged: it is converted anew
    return None


def _build(
    entry: Path,
    train_sources: list[Resolved],
    val_sources: list[Resolved],
    task: str,
    options: Options,
    bad_rows: str,
    val_size: str,
    seed: int,
    wants_val: bool,
    progress: Any,
) -> Prepared:
    import numpy as np

    from common.data_utils import split
    from common.data_utils.pipeline import convert_sources

    entry.parent.mkdir(parents=True, exist_ok=True)
    clear_stale(entry.parent)
    folder = temp_beside(entry)
    folder.mkdir()
    try:
        splits = wants_val and not val_sources
        keys: list[bytes] | None = [] if splits else None
        whole = folder / ("all.parquet" if splits else "train.parquet")
        problems: list[str] = []
        summaries = []
        for sources, output, role in (
            (train_sources, whole, "train"),
            (val_sources, folder / "val.parquet", "val"),
        ):
            if not sources:
                continue
            try:
                wanted = keys if role == "train" else None
                summary = convert_sources(
                    sources,
                    output,
                    task,
                    options,
                    bad_rows=bad_rows,
                    split=role,
                    progress=progress,
                    keys=wanted,
                )
                summaries.append(summary)
            except DataError as problem:
                problems += problem.problems
        if problems:
            raise DataError(*problems)
        counts = [summary.rows_out for summary in summaries]
        if keys is not None:
            hashes = np.frombuffer(b"".join(keys), dtype=np.uint64)
            mask = split.choose(hashes, split.wanted_rows(len(hashes), val_size), seed)
            counts = list(split.write_split(whole, mask, folder / "train.parquet", folder / "val.parquet"))
            whole.unlink()
        prepared = _describe(
            entry, task, summaries, counts, "split" if splits else "given" if val_sources else "none"
        )
        rejects = folder / "all.rejected.jsonl"
        if rejects.exists():
            rejects.rename(folder / "train.rejected.jsonl")
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        write_text(
            folder / _MANIFEST,
            json.dumps(prepared.as_dict() | {"sizes": sizes}, ensure_ascii=False, indent=1),
        )
        return _publish(folder, entry, prepared)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _describe(entry: Path, task: str, summaries: list[Any], counts: list[int], val_from: str) -> Prepared:
    parts = [part for summary in summaries for part in summary.sources]
    rejected = [summary.rejected for summary in summaries]
    tools = any(summary.has_tools for summary in summaries)
    tools_class = {"path": str(Path(__file__).with_name("verl_datasets.py")), "name": "ToolsSFTDataset"}
    notes = [f"{part.name}: {note}" for part in parts for note in part.notes]
    if val_from == "split":
        notes.append(f"validation: {counts[1]} rows split from train, equal prompts kept on one side")
    return Prepared(
        task=task,
        train=str(entry / "train.parquet"),
        val=None if val_from == "none" else str(entry / "val.parquet"),
        train_rows=counts[0],
        val_rows=counts[1] if len(counts) > 1 else 0,
        val_from=val_from,
        format=",".join(dict.fromkeys(part.format for part in parts)),
        reason="; ".join(f"{Path(part.name).name}: {part.reason}" for part in parts),
        rows_in=sum(summary.rows_in for summary in summaries),
        rejected=sum(rejected),
        rejected_file=str(entry / "train.rejected.jsonl") if rejected[0] else None,
        rejected_val_file=str(entry / "val.rejected.jsonl") if len(rejected) > 1 and rejected[1] else None,
        cached=False,
        cache_key=entry.name,
        notes=notes,
        data_sources=sorted({name for summary in summaries for name in summary.data_sources}),
        dataset_class=tools_class if tools and task == "sft" else None,
    )


def _publish(folder: Path, entry: Path, prepared: Prepared) -> Prepared:
    """Rename the finished entry into place; if another run was first, its entry (the same content) serves."""
    for _ in range(2):
        try:
            folder.rename(entry)
            return prepared
        except OSError:
            other = _load(entry)
            if other is not None:
                return other
            # A damaged entry stands in the way: move it aside, then try once more.
            broken = temp_beside(entry)
            entry.rename(broken)
            shutil.rmtree(broken, ignore_errors=True)
    raise DataError(f"{entry}: the cache entry cannot be written; remove it and try again")


def _overlong(
    entry: Path, found: Prepared, tokenizer: str, max_prompt: int | None, most: int | None
) -> dict[str, Any]:
    """Row counts over the limits, counted once per tokenizer and limits."""
    import hashlib

    name = hashlib.sha256(json.dumps([3, tokenizer, max_prompt, most]).encode()).hexdigest()[:16]
    memo = entry / f"overlong-{name}.json"
    if memo.is_file():
        return dict(json.loads(memo.read_text(encoding="utf-8")))
    from common.data_utils.lengths import overlong

    files = [path for path in (found.train, found.val) if path is not None]
    result = {
        Path(path).stem: overlong(Path(path), found.task, tokenizer, max_prompt, most) for path in files
    }
    write_text(memo, json.dumps(result))
    return result
