"""Listing, checking and thinning out checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.checkpoints import naming, place
from common.checkpoints.errors import CheckpointError
from common.checkpoints.merging import MARK, merge, no_loading_bars
from common.checkpoints.place import Checkpoint
from common.cpu.model import cache_root
from common.launcher import processes, runs

PROBE = "The quick brown fox jumps over the lazy dog. 2 + 2 ="


@dataclass(frozen=True)
class Entry:
    """One step of one run; `score` is its validation (None: not validated), `bytes` its size on disk."""

    run: str
    step: int
    kind: str
    bytes: int
    metric: str
    score: float | None
    marks: tuple[str, ...]
    path: Path


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def entries(output: Path, run: str = "") -> list[Entry]:
    """Every kept step below *output*, oldest run first; only those of *run* when it is given."""
    found = []
    for root in naming.checkpoint_roots(output):
        name = f"{root.parent.name}/{root.name}"
        if run and run not in (name, root.name):
            continue
        metric, scores = naming.validation_scores(root)
        newest = runs.latest_step(root)
        try:
            best = naming.best_step(root)[0]
        except CheckpointError:
            best = None
        for step, folder in place.steps_of(root).items():
            try:
                kind = place.at(folder).kind
            except CheckpointError:
                kind = "incomplete"
            marks = tuple(m for m, at in (("last", newest), ("best", best)) if at == step)
            found.append(Entry(name, step, kind, _size(folder), metric, scores.get(step), marks, folder))
    return found


def prune(output: Path, run: str, keep: int, *, keep_best: bool = True) -> list[Entry]:
    """What of a run may go: all but the *keep* newest steps, the one to resume from and the best.

    Raises:
        CheckpointError: no such run, it is running, or *keep* is below 1.
    """
    if keep < 1:
        raise CheckpointError(f"--keep {keep}: keep at least 1 step")
    kept = entries(output, run)
    if not kept:
        raise CheckpointError(f"no run '{run}' with checkpoints under {output}")
    going = []
    for name in dict.fromkeys(entry.run for entry in kept):
        _refuse_running(output / "logs" / name)
        of_run = [entry for entry in kept if entry.run == name]
        newest = {entry.step for entry in of_run[-keep:]}
        for entry in of_run:
            spared = entry.step in newest or "last" in entry.marks or (keep_best and "best" in entry.marks)
            if not spared:
                going.append(entry)
    return going


def _refuse_running(logs: Path) -> None:
    if not (logs / "run.json").is_file():
        return
    last = (runs.read(logs).get("attempts") or [{}])[-1]
    if (
        last.get("tag")
        and last.get("exit_code") is None
        and processes.is_supervisor(last.get("pid"), last["tag"])
    ):
        raise CheckpointError(
            f"{logs.name} is running (pid {last['pid']}): it prunes its own (KEEP_CHECKPOINTS)"
        )


def stale_merges() -> list[Path]:
    """Merged models in the cache whose checkpoint is gone."""
    found = []
    for mark in (cache_root() / "merged").glob(f"*/{MARK}"):
        source = json.loads(mark.read_text(encoding="utf-8")).get("source", "")
        if not Path(source).is_dir():
            found.append(mark.parent)
    return found


def remove(folder: Path) -> None:
    """Delete a folder; renamed first, so that nobody takes a half-deleted one for a checkpoint.

    Raises:
        CheckpointError: it cannot be deleted.
    """
    doomed = folder.with_name(f".deleting-{folder.name}")
    try:
        folder.rename(doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be deleted: {error.strerror or error}") from None


def verify(checkpoint: Checkpoint, *, lora_alpha: float | None = None) -> dict[str, Any]:
    """Load a checkpoint for real and look at it.

    Returns:
        Facts: parameters (count), dtype, tokenizer (vocabulary size), chat_template (bool), and for LoRA
        `logits_from_base` (largest difference on a probe text).

    Raises:
        CheckpointError: missing or unknown weights, NaN or infinity in weights or logits, a tokenizer that
            does not load, or LoRA logits equal to the base's.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = merge(checkpoint, lora_alpha=lora_alpha)
    no_loading_bars()
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, report = load(merged.path, dtype=merged.dtype, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(merged.path)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{merged.path} does not load: {reason}") from None
    wrong = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
    if wrong:
        raise CheckpointError(f"{merged.path}: weights missing or unknown: {', '.join(wrong[:3])}")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{merged.path}: {name} holds NaN or infinity: the training diverged")
    ids = tokenizer(PROBE, return_tensors="pt").input_ids
    logits = _logits(model, ids)
    facts: dict[str, Any] = {
        "path": merged.path,
        "dtype": f"{merged.dtype} ({merged.dtype_from})",
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "tokenizer": len(tokenizer),
        "chat_template": bool(tokenizer.chat_template),
    }
    if not torch.isfinite(logits).all():
        raise CheckpointError(f"{merged.path}: its logits are not finite")
    if merged.info.get("base"):
        base = AutoModelForCausalLM.from_pretrained(merged.info["base"], dtype=model.dtype)
        difference = float((logits - _logits(base, ids)).abs().max())
        facts["logits_from_base"] = difference
        if difference == 0:
            raise CheckpointError(
                f"{checkpoint.path}: the LoRA is applied, but in {merged.dtype} the logits equal the base's: "
                "the adapter is too small to matter in this precision"
            )
    return facts


def _logits(model: Any, ids: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(ids).logits.float()
