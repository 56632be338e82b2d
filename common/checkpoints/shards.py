"""verl's FSDP shards -> whole tensors, on the CPU, without a process group.

verl's own `python -m verl.model_merger` casts every weight to bfloat16, and for LoRA saves the unchanged base
beside the adapter (upstream issues 7285 and 4553). Here weights keep their precision.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from common.checkpoints.errors import CheckpointError
from common.checkpoints.place import shards_of


def load_shards(folder: Path) -> list[dict[str, Any]]:
    """The state dict of every rank, tensors mapped from the files instead of read.

    Raises:
        CheckpointError: a shard is missing or damaged.
    """
    import torch
    import torch.distributed.tensor  # registers DTensor as safe to unpickle

    # DTensors carry the mesh of the run; that it has no process group here is the point.
    logging.getLogger("torch.distributed.device_mesh").setLevel(logging.ERROR)
    ranks = []
    for path in shards_of(folder):
        try:
            ranks.append(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{path} cannot be read ({reason}): the save was cut short; use an older step"
            ) from None
    return ranks


def whole(name: str, parts: list[Any]) -> Any:
    """One tensor from its parts, a part per rank.

    Args:
        name: of the tensor, for messages.
        parts: DTensors sharded over ("fsdp",) or replicated over ("ddp", "fsdp"), or plain equal tensors.

    Raises:
        CheckpointError: a layout that is neither, or parts that do not add up to the recorded shape.
    """
    import torch
    from torch.distributed.tensor import DTensor, Replicate, Shard

    first = parts[0]
    if not isinstance(first, DTensor):
        if any(part.shape != first.shape or not torch.equal(part, first) for part in parts[1:]):
            raise CheckpointError(
                f"{name} is replicated but differs between ranks: the checkpoint is damaged"
            )
        return first
    placement, group = first.placements[-1], first.device_mesh.mesh.shape[-1]
    if any(not p.is_replicate() for p in first.placements[:-1]) or not isinstance(
        placement, Shard | Replicate
    ):
        raise CheckpointError(f"{name} is sharded over {first.device_mesh}, which is not supported")
    if isinstance(placement, Replicate):
        return first.to_local()
    tensor = torch.cat([part.to_local() for part in parts[:group]], dim=placement.dim)
    if tensor.shape != first.shape:
        raise CheckpointError(
            f"{name} has shape {list(tensor.shape)} instead of {list(first.shape)}: damaged or mixed shards"
        )
    return tensor


def whole_state(folder: Path, dtype: str = "") -> dict[str, Any]:
    """All weights of a checkpoint under their own names.

    Args:
        folder: holds the shards.
        dtype: of floating-point weights; "" = as saved.

    Raises:
        CheckpointError: as `load_shards` and `whole`, or ranks that hold different names.
    """
    import torch

    ranks = load_shards(folder)
    if any(rank.keys() != ranks[0].keys() for rank in ranks[1:]):
        raise CheckpointError(f"{folder}: its shards hold different weights: two runs wrote into it")
    state = {}
    for name in list(ranks[0]):
        tensor = whole(name, [rank.pop(name) for rank in ranks])
        state[name] = (
            tensor.to(getattr(torch, dtype)) if dtype and tensor.is_floating_point() else tensor
        ).contiguous()
    return state
