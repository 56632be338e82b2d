"""python -m common.checkpoints list|merge|export|prune|verify"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from common.checkpoints import default_output, export, merge, resolve
from common.checkpoints.errors import CheckpointError
from common.launcher.errors import exit_with

NAMES = "a folder (run, global_step_N, actor, adapter, HF model), last, best, last:METHOD, a run's name or a hub id"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m common.checkpoints", description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=default_output(), help="the launchers' OUTPUT_DIR")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="the checkpoints of all runs, or of one")
    listing.add_argument("run", nargs="?", default="")
    listing.add_argument("--json", action="store_true", help="one JSON object per line")
    helps = {
        "merge": "join shards and fold LoRA into the cache; print the folder",
        "export": "a copy that depends on nothing else",
        "verify": "load it, look for damage, compare a LoRA's logits with the base's",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("model", help=NAMES)
        if name == "export":
            command.add_argument("folder", type=Path, help="new or empty")
        command.add_argument("--step", type=int, help="of a run; default: the newest")
        command.add_argument("--base_model", default="", help="base of a LoRA adapter that does not name it")
        command.add_argument("--lora_alpha", type=float, help="instead of the recorded one")
        if name != "verify":
            command.add_argument(
                "--dtype", default="auto", help="bfloat16, float16, float32; auto = the run's"
            )
    pruning = commands.add_parser("prune", help="delete old steps of a run; shows them unless --yes")
    pruning.add_argument("run", nargs="?", default="")
    pruning.add_argument("--keep", type=int, default=1, help="newest steps kept (the best one is kept too)")
    pruning.add_argument("--drop_best", action="store_true", help="do not spare the best step")
    pruning.add_argument("--cache", action="store_true", help="merged models whose checkpoint is gone")
    pruning.add_argument("--yes", action="store_true", help="delete")
    return parser


def _list(own: argparse.Namespace) -> None:
    from common.checkpoints.housekeeping import entries

    found = entries(own.output_dir, own.run)
    if own.json:
        for entry in found:
            print(json.dumps({**asdict(entry), "path": str(entry.path)}))
        return
    if not found:
        raise CheckpointError(f"no checkpoints{f' of {own.run}' if own.run else ''} under {own.output_dir}")
    rows = [
        (
            entry.run,
            str(entry.step),
            entry.kind,
            f"{entry.bytes / 2**30:.2f} GiB",
            "-" if entry.score is None else f"{entry.score:.4g}",
            " ".join(entry.marks),
        )
        for entry in found
    ]
    rows.insert(0, ("run", "step", "kind", "size", "validation", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _prune(own: argparse.Namespace) -> None:
    from common.checkpoints.housekeeping import prune, remove, stale_merges

    if not own.run and not own.cache:
        raise CheckpointError("prune: name a run, or give --cache")
    going = prune(own.output_dir, own.run, own.keep, keep_best=not own.drop_best) if own.run else []
    folders = [entry.path for entry in going] + (stale_merges() if own.cache else [])
    for folder in folders:
        if own.yes:
            remove(folder)
        print(f"{'deleted' if own.yes else 'would delete'} {folder}")
    size = sum(entry.bytes for entry in going) / 2**30
    print(
        f"{len(folders)} folders, {size:.2f} GiB of checkpoints" + ("" if own.yes else "; --yes deletes them")
    )


def main() -> None:
    """Entry point."""
    own = _parser().parse_args()
    if own.command == "list":
        return _list(own)
    if own.command == "prune":
        return _prune(own)
    checkpoint = resolve(own.model, output=own.output_dir, step=own.step, base=own.base_model)
    if own.command == "verify":
        from common.checkpoints.housekeeping import verify

        for name, value in verify(checkpoint, lora_alpha=own.lora_alpha).items():
            print(f"{name}: {value}")
        print(f"ok: {checkpoint.title}")
        return None
    if own.command == "merge":
        done = merge(checkpoint, lora_alpha=own.lora_alpha, dtype=own.dtype)
    else:
        done = export(checkpoint, own.folder, lora_alpha=own.lora_alpha, dtype=own.dtype)
    print(done.path)
    print(f"note: {checkpoint.title}, {done.dtype} ({done.dtype_from})", file=sys.stderr)
    return None


if __name__ == "__main__":
    try:
        exit_with(main)
    except BrokenPipeError:
        sys.exit(141)
