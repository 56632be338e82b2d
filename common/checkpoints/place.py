"""What a folder is: a Hugging Face model, a LoRA adapter, or one of the folders that verl writes.

verl 0.9.1 (`utils/checkpoint/fsdp_checkpoint_manager.py`):

    <checkpoints>/latest_checkpointed_iteration.txt
    <checkpoints>/global_step_N/actor/      RL; SFT and DPO have the files in global_step_N itself
        model_world_size_W_rank_R.pt        W shards
        huggingface/                        config and tokenizer; weights too where hf_model was saved
        lora_train_meta.json                LoRA only: r, lora_alpha, task_type

Standard library only.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.checkpoints.errors import CheckpointError
from common.launcher import runs

_SHARD = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt$")
_STEP = re.compile(r"global_step_(\d+)$")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
LORA_META = "lora_train_meta.json"


@dataclass(frozen=True)
class Checkpoint:
    """One model and where its weights are.

    Attributes:
        kind: "hub" (a hub id), "hf" (weights in Hugging Face form), "adapter" (PEFT), "shards" (verl FSDP),
            "lora_shards" (the same with a LoRA in it), "megatron" (verl's Megatron layout).
        path: the folder that holds these files; the id for "hub".
        root: verl's folder of all steps, where there is one.
        step: of training; None for anything but a verl checkpoint.
        run_dir: the run's log folder (`run.json`), where it is known.
        base: model that an adapter or LoRA belongs to, when the user named one.
    """

    kind: str
    path: str
    root: Path | None = None
    step: int | None = None
    run_dir: Path | None = None
    base: str = ""

    @property
    def run(self) -> str:
        """`method/run`, or "" outside of a run's folder."""
        return f"{self.root.parent.name}/{self.root.name}" if self.root else ""

    @property
    def title(self) -> str:
        """For people: `grpo/my_run step 30`, else the path or hub id."""
        return f"{self.run} step {self.step}" if self.run else self.path

    def record(self) -> dict[str, Any]:
        """The run's `run.json`; empty where there is none."""
        if self.run_dir is None or not (self.run_dir / "run.json").is_file():
            return {}
        return runs.read(self.run_dir)


def has_weights(folder: Path) -> bool:
    """Whether *folder* is a Hugging Face model with its weights."""
    return (folder / "config.json").is_file() and any(any(folder.glob(p)) for p in WEIGHTS)


def steps_of(root: Path) -> dict[int, Path]:
    """The `global_step_N` folders that hold a model, by step. verl prunes the model and leaves the folder."""
    found = {}
    for folder in root.glob("global_step_*"):
        match = _STEP.search(folder.name)
        if match and _model_folder(folder) is not None:
            found[int(match[1])] = folder
    return dict(sorted(found.items()))


def _model_folder(folder: Path) -> Path | None:
    """The folder with the model's files: *folder* or its `actor/`."""
    for place in (folder / "actor", folder):
        if any(place.glob("model_world_size_*.pt")) or has_weights(place / "huggingface"):
            return place
        if (place / "model" / "huggingface").is_dir():
            return place
    return None


def shards_of(folder: Path) -> list[Path]:
    """The model shards in order of rank.

    Raises:
        CheckpointError: none, some are missing, or two world sizes are mixed.
    """
    found: dict[int, dict[int, Path]] = {}
    for path in folder.glob("model_world_size_*_rank_*.pt"):
        match = _SHARD.search(path.name)
        if match:
            found.setdefault(int(match[1]), {})[int(match[2])] = path
    if not found:
        raise CheckpointError(f"{folder} holds no model_world_size_*_rank_*.pt")
    if len(found) > 1:
        sizes = " and ".join(map(str, sorted(found)))
        raise CheckpointError(
            f"{folder} mixes shards of {sizes} processes: two runs wrote into it; remove the files of one"
        )
    ((world, ranks),) = found.items()
    missing = [rank for rank in range(world) if rank not in ranks]
    if missing:
        raise CheckpointError(
            f"{folder} holds {len(ranks)} of {world} shards (rank {', '.join(map(str, missing[:5]))} missing): "
            "the save was cut short, or the other nodes wrote to disks of their own; copy them here"
        )
    return [ranks[rank] for rank in range(world)]


def is_lora(folder: Path) -> bool:
    """Whether verl trained a LoRA into these shards."""
    return (folder / LORA_META).is_file()


def looks_like_checkpoint(path: Path) -> bool:
    """Whether a folder is an adapter or one of those that verl or a launcher writes."""
    marks = ("run.json", "adapter_config.json", "latest_checkpointed_iteration.txt", LORA_META)
    return any((path / mark).is_file() for mark in marks) or _model_folder(path) is not None


def at(path: Path, step: int | None = None, base: str = "") -> Checkpoint:
    """The checkpoint behind an existing folder: any of those that the module's docstring names.

    Args:
        path: a folder.
        step: which one, where *path* is a run or holds several; None = the newest complete one.
        base: model of an adapter.

    Raises:
        CheckpointError: it is none of them; the message says what was found and what was expected.
    """
    path = path.expanduser().absolute()
    if (path / "run.json").is_file() and not has_weights(path):
        return at(_checkpoints_of_run(path), step, base)
    if (path / "adapter_config.json").is_file():
        return Checkpoint("adapter", str(path), *_origin(path), base=base)
    if path.name == "critic" and (any(path.glob("model_world_size_*.pt"))):
        raise CheckpointError(f"{path} is a critic: it scores text and writes none; give {path.parent}/actor")
    if path.name == "huggingface" and not has_weights(path) and (path / "config.json").is_file():
        return at(path.parent, step, base)  # config and tokenizer only; the weights are the shards above
    if has_weights(path):
        _refuse_wrong_names(path)
        return Checkpoint("hf", str(path), *_origin(path))
    steps = steps_of(path)
    if steps or (path / "latest_checkpointed_iteration.txt").is_file():
        return _pick_step(path, steps, step, base)
    place = _model_folder(path)
    if place is not None:
        return _verl(place, base)
    found = ", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing"
    raise CheckpointError(
        f"{path} holds no model (found: {found}); expected config.json with weights, adapter_config.json, "
        "a run's folder, global_step_N, or verl's model_world_size_*.pt"
    )


def _checkpoints_of_run(folder: Path) -> Path:
    record = runs.read(folder)
    beside = folder.parents[2] / "checkpoints" / folder.parent.name / folder.name
    for root in (Path(record.get("checkpoint_dir") or beside), beside):
        if root.is_dir():
            return root
    raise CheckpointError(
        f"run {folder.parent.name}/{folder.name} has saved no checkpoint "
        f"(SAVE_FREQ was {(record.get('knobs') or {}).get('SAVE_FREQ', '?')})"
    )


def _pick_step(root: Path, steps: dict[int, Path], wanted: int | None, base: str) -> Checkpoint:
    if not steps:
        raise CheckpointError(f"{root} holds no checkpoint with a model in it")
    newest = runs.latest_step(root)
    if wanted is None:
        wanted = newest if newest in steps else max(steps)
    if wanted not in steps:
        raise CheckpointError(f"{root} has no step {wanted}; it has: {', '.join(map(str, steps))}")
    return at(steps[wanted], None, base)


def _verl(place: Path, base: str) -> Checkpoint:
    origin = _origin(place)
    if (place / "model" / "huggingface").is_dir() and not any(place.glob("model_world_size_*.pt")):
        inner = place / "model" / "huggingface"
        if has_weights(inner):
            return Checkpoint("hf", str(inner), *origin)
        return Checkpoint("megatron", str(place), *origin)
    if is_lora(place):
        shards_of(place)
        return Checkpoint("lora_shards", str(place), *origin, base=base)
    exported = place / "huggingface"
    if has_weights(exported) and not _adapter_names(exported):
        return Checkpoint("hf", str(exported), *origin)
    shards_of(place)
    return Checkpoint("shards", str(place), *origin)


def _origin(path: Path) -> tuple[Path | None, int | None, Path | None]:
    """(folder of all steps, step, log folder) of a path inside a verl checkpoint; Nones elsewhere."""
    for folder in (path, *path.parents[:3]):
        match = _STEP.search(folder.name)
        if match:
            root = folder.parent
            logs = root.parents[2] / "logs" / root.parent.name / root.name if len(root.parents) > 2 else root
            return root, int(match[1]), logs if (logs / "run.json").is_file() else None
    return None, None, None


def _adapter_names(folder: Path) -> bool:
    """Whether the weights carry PEFT's names (verl's hf_model of a LoRA run): transformers would load noise."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            try:
                names = json.loads(file.read(size))
            except ValueError:
                raise CheckpointError(f"{path} is damaged (its header cannot be read)") from None
        return any(name.startswith("base_model.") for name in names)
    return False


def _refuse_wrong_names(folder: Path) -> None:
    if not _adapter_names(folder):
        return
    if is_lora(folder.parent):
        raise CheckpointError(
            f"{folder} holds LoRA weights under PEFT's names, which load as random ones: give {folder.parent}"
        )
    raise CheckpointError(
        f"{folder} holds weights named base_model.*, which load as random ones: save it with PEFT or merge it"
    )
