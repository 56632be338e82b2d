"""Bytes of one FSDP engine: what it holds, and what its work takes on top.

Sources: ``verl.workers.engine.fsdp.transformer_impl.FSDPEngine`` (dtypes, wrapping, offload, micro-batches),
``verl.utils.fsdp_utils.apply_fsdp2`` (which modules are gathered alone), torch 2.11's
``torch/distributed/fsdp/_fully_shard`` (buffers of gathering and reducing), ``torch.optim.AdamW`` (two moments; one
parameter at a time, as its parameters are DTensors).
"""

from __future__ import annotations

from common.memory import activations
from common.memory.settings import Engine

Parts = dict[str, int]


def weights(engine: Engine) -> int:
    """Sharded master weights of one process."""
    return engine.total * engine.master // engine.shard


def optimizer(engine: Engine) -> int:
    """AdamW's two moments of one process."""
    return 2 * engine.trainable * engine.master // engine.shard


def gradients(engine: Engine) -> int:
    """Sharded gradients of one process, between the first backward pass and the step."""
    return engine.trainable * engine.master // engine.shard


def _root(engine: Engine) -> int:
    """Weights that stay gathered through a whole pass: a tied embedding is part of the root (verl: `_tie`)."""
    return engine.shape.embedding if engine.shape.tied else engine.shape.hidden


def gathered(engine: Engine, *, at_head: bool) -> int:
    """Weights that are whole while a layer, or the head, computes."""
    shape, c = engine.shape, engine.compute
    if not engine.reshard:
        return engine.total * c
    if at_head:
        alone = 0 if shape.tied or engine.head == "value" else shape.embedding
        return c * (_root(engine) + alone)
    # One layer; over several ranks the next one is on its way too, beside the buffer that it arrives in.
    return c * (_root(engine) + shape.layer * (1 if engine.shard == 1 else 3))


def _head_gradient(engine: Engine) -> int:
    """Gradient of the head's weight; fused kernels add up one per chunk (``FusedLinearForPPOFunction.backward``)."""
    if engine.adapter or engine.head == "value":
        return 0
    return engine.compute * engine.shape.embedding * (2 if engine.head == "fused" else 1)


def _held_gradients(engine: Engine) -> int:
    """Gradients that are there when a backward pass begins."""
    if engine.no_sync and engine.micro_batches > 1:
        return engine.trainable * engine.reduce
    return gradients(engine) if engine.micro_batches > 1 else 0


def _reduced(engine: Engine, unit: int) -> int:
    """Buffers while the gradients of a unit are reduced: its own, the input and the output of reduce-scatter."""
    if engine.adapter:
        unit = unit * engine.adapter // engine.shape.parameters
    return unit * (engine.compute + engine.reduce) + unit * engine.reduce // engine.shard


def update(engine: Engine) -> Parts:
    """What an update takes on top of weights and optimizer, at its worst moment."""
    kept = activations.saved(engine)
    head = _head_gradient(engine)
    moments: list[Parts] = [
        {
            "gradients": _held_gradients(engine),
            "gathered weights": engine.compute * (_root(engine) if engine.reshard else engine.total),
            "activations": kept,
            "logits": activations.logits_update(engine),
        },
        {
            "gradients": _held_gradients(engine),
            "gathered weights": gathered(engine, at_head=True),
            "activations": kept,
            "logits": activations.logits_slope(engine),
            "gradient buffers": head,
        },
        {
            "gradients": _held_gradients(engine),
            "gathered weights": gathered(engine, at_head=False),
            "activations": kept + activations.working(engine),
            # A tied head's gradient waits for that of the embedding.
            "gradient buffers": (head if engine.shape.tied else 0) + _reduced(engine, engine.shape.layer),
        },
        {
            "gradients": gradients(engine),
            "gathered weights": engine.compute * _root(engine),
            "gradient buffers": 0 if engine.adapter else _reduced(engine, engine.shape.embedding),
        },
        {"gradients": gradients(engine), "optimizer step": _step(engine)},
    ]
    return max(moments, key=lambda parts: sum(parts.values()))


def _step(engine: Engine) -> int:
    """Temporaries of AdamW for the largest tensor."""
    largest = engine.shape.largest if not engine.adapter else 512 * engine.shape.hidden
    return 2 * largest * engine.master // engine.shard


def infer(engine: Engine, entropy: bool) -> Parts:
    """What a pass without gradients takes on top of the weights."""
    moments: list[Parts] = [
        {
            "gathered weights": gathered(engine, at_head=True),
            "activations": engine.infer_tokens * engine.shape.hidden * (4 + 2 * engine.compute),
            "logits": activations.logits_infer(engine, entropy),
        },
        {"gathered weights": gathered(engine, at_head=False), "activations": activations.passing(engine)},
    ]
    return max(moments, key=lambda parts: sum(parts.values()))


def checkpoint(engine: Engine) -> int:
    """Bytes of one checkpoint on disk, over all ranks (``FSDPCheckpointManager.save_checkpoint``)."""
    groups = engine.ranks // engine.shard  # every replica of a hybrid mesh writes its own shards
    total = 0
    if "model" in engine.save:
        total += groups * engine.total * engine.master
    if "optimizer" in engine.save:
        total += groups * 2 * engine.trainable * engine.master
    if "hf_model" in engine.save:
        total += engine.total * engine.master
    return total


def exported(engine: Engine) -> int:
    """Host bytes of rank 0 while it writes ``huggingface/``: the whole state dict (``get_fsdp_full_state_dict``)."""
    return engine.total * engine.master if "hf_model" in engine.save else 0


def pinned(engine: Engine, each: int) -> int:
    """Host bytes of one process's shard in pinned memory, *each* bytes per weight.

    torch's CachingHostAllocator rounds every tensor up to a power of two.
    """
    total = 0
    for tensor in engine.shape.tensors:
        size = max(1, -(-tensor.numel // engine.shard) * each)
        total += tensor.count * (1 << (size - 1).bit_length())
    return total + engine.adapter * each // engine.shard


def loading(engine: Engine) -> int:
    """Host bytes of a node while the model is read: the whole model on every rank that reads it.

    Source: ``get_init_weight_context_manager``: with untied embeddings one rank per shard group reads it and the
    others start empty; with tied ones every rank reads it.
    """
    readers = engine.local_ranks if engine.shape.tied else max(1, engine.local_ranks // engine.shard)
    return readers * engine.total * engine.master
