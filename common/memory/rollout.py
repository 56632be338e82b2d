"""Bytes of the engine that samples answers: vLLM beside the trainer on the same GPUs (verl's hybrid engine).

Sources: vLLM 0.24 ``v1/worker/gpu_worker.py::determine_available_memory`` and ``v1/worker/utils.py::request_memory``
(`gpu_memory_utilization` is a share of the whole GPU for everything that vLLM holds; the KV cache is what is left of
it), verl ``workers/rollout/vllm_rollout`` (sleep levels) and ``workers/engine_workers.py::update_weights``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.memory.architecture import Shape
from common.memory.settings import dtype_bytes, get

# Tokens per block of the KV cache (vLLM's default).
BLOCK = 16


@dataclass(frozen=True)
class Rollout:
    """One vLLM engine process: bytes and tokens on its GPU.

    Attributes:
        share: `gpu_memory_utilization`; 0 where the KV cache has a size of its own (`kv_bytes`).
        longest: tokens of the longest sequence.
        kv_token: bytes of the cache per token.
        sleeps: whether it gives its memory back while the trainer works.
        level: 2 throws the weights away, 1 keeps them in host memory (LoRA).
        bucket: of the weight transfer.
    """

    weights: int
    working: int
    share: float
    kv_bytes: int
    kv_token: int
    longest: int
    sleeps: bool
    level: int
    bucket: int


def read_rollout(shape: Shape, config: Mapping[str, Any], *, lora: bool, model_length: int) -> Rollout:
    """From ``actor_rollout_ref.rollout`` or ``reward.reward_model.rollout``.

    Args:
        lora: verl sends the adapter alone, and vLLM sleeps lightly.
        model_length: `max_position_embeddings`, vLLM's limit where the config has none.
    """
    parallel = int(get(config, "tensor_model_parallel_size", 1))
    stages = int(get(config, "pipeline_model_parallel_size", 1))
    c = dtype_bytes(get(config, "dtype"), 2)
    kv_heads = -(-shape.kv_heads // parallel)  # fewer heads than ranks: vLLM repeats them
    tokens, sequences = (
        int(get(config, "max_num_batched_tokens", 8192)),
        int(get(config, "max_num_seqs", 256)),
    )
    width = max(shape.ffn, shape.active * shape.expert_ffn + shape.shared_ffn) // parallel
    # Its largest batch through an MLP (gate and up in one tensor, their product), or the logits it samples from:
    # in fp32, their softmax and a sorted copy.
    mlp = tokens * c * (3 * width + 3 * shape.hidden)
    logits = sequences * shape.vocab * 12
    return Rollout(
        weights=shape.parameters * c // (parallel * stages),
        working=max(mlp, logits),
        share=float(get(config, "gpu_memory_utilization", 0.9)),
        kv_bytes=int(get(config, "engine_kwargs.vllm.kv_cache_memory_bytes", 0)),
        kv_token=2 * c * shape.layers * kv_heads * shape.head_dim // stages,
        longest=int(get(config, "max_model_len", model_length)),
        sleeps=bool(get(config, "free_cache_engine", True)),
        level=1 if lora else 2,
        bucket=int(get(config, "checkpoint_engine.update_weights_bucket_megabytes", 2048)) << 20,
    )


def least(rollout: Rollout) -> int:
    """Bytes that it needs at the least: weights, one batch, and the cache of one sequence of full length."""
    return rollout.weights + rollout.working + _one_sequence(rollout)


def _one_sequence(rollout: Rollout) -> int:
    return -(-rollout.longest // BLOCK) * BLOCK * rollout.kv_token


def parts(rollout: Rollout, gpu_memory: int | None) -> dict[str, int]:
    """What it holds on its GPU while it samples.

    Args:
        gpu_memory: bytes of the GPU; None = unknown, then the least cache that vLLM starts with.
    """
    fixed = {"vLLM weights": rollout.weights, "vLLM working memory": rollout.working}
    if rollout.kv_bytes:
        cache = rollout.kv_bytes
    elif gpu_memory is None:
        cache = _one_sequence(rollout)
    else:
        cache = max(0, round(rollout.share * gpu_memory) - sum(fixed.values()))
    return {**fixed, "KV cache": cache}
