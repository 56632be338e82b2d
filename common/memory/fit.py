"""What fits: the largest micro-batch for a GPU, and the smallest set of GPUs for a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.memory.estimate import Estimate, estimate
from common.memory.settings import get

# Share of a GPU that an estimate may fill. The rest is for what the caching allocator cannot reuse.
USABLE = 0.9
_MOST = 1 << 24


@dataclass(frozen=True)
class Fit:
    """The largest micro-batch that fits.

    Attributes:
        knob: MAX_TOKENS_PER_GPU or MICRO_BATCH_SIZE.
        value: 0 where not even the smallest one fits.
        smallest: the least value that verl takes: the longest row.
        limit: the phase that stops a larger one; "" where the whole batch of a step fits.
    """

    knob: str
    value: int
    smallest: int
    limit: str


def shortage(found: Estimate, memory: int, *, cpu: bool = False) -> str:
    """The phase that does not fit; "" where all do.

    Args:
        memory: bytes of one GPU; on the CPU, of a node.
    """
    for phase in found.phases:
        if (phase.host_bytes if cpu else phase.gpu_bytes) > USABLE * memory:
            return phase.name
    if not cpu and found.kv_tokens < found.kv_needed:
        return "rollout"  # vLLM refuses a cache that cannot hold the longest sequence
    return ""


def with_budget(config: Mapping[str, Any], value: int) -> dict[str, Any]:
    """The config with another micro-batch everywhere: tokens where it counts tokens, rows where it counts rows."""
    tree = copy.deepcopy(dict(config))
    if "actor_rollout_ref" not in tree:
        tree["data"]["max_token_len_per_gpu"] = tree["data"]["micro_batch_size_per_gpu"] = value
        return tree
    parts = tree["actor_rollout_ref"]
    for name, key in (("actor", "ppo"), ("ref", "log_prob"), ("rollout", "log_prob")):
        parts[name][f"{key}_max_token_len_per_gpu"] = parts[name][f"{key}_micro_batch_size_per_gpu"] = value
    tree["critic"]["ppo_infer_max_token_len_per_gpu"] = value
    tree["critic"]["fsdp"]["micro_batch_size_per_gpu"] = value
    return tree


def largest(
    config: Mapping[str, Any],
    model_config: Mapping[str, Any],
    *,
    memory: int,
    gpus: int,
    nodes: int = 1,
    device: str = "cuda",
    **more: Any,
) -> Fit:
    """The largest micro-batch whose every phase fits.

    Args:
        config: a resolved verl config as nested dicts.
        memory: bytes of one GPU; on the CPU, of a node.
        more: as `estimate` takes them.
    """
    cpu = device == "cpu"
    rl = "actor_rollout_ref" in config
    dynamic = bool(
        get(config, "actor_rollout_ref.actor.use_dynamic_bsz" if rl else "data.use_dynamic_bsz", False)
    )

    def limit(value: int) -> str:
        found = estimate(
            with_budget(config, value), model_config, gpus=gpus, nodes=nodes, device=device,
            gpu_memory=None if cpu else memory, **more,
        )  # fmt: skip
        return shortage(found, memory, cpu=cpu)

    smallest = longest_row(config) if dynamic else 1
    knob = "MAX_TOKENS_PER_GPU" if dynamic else "MICRO_BATCH_SIZE"
    if stopped := limit(smallest):
        return Fit(knob, 0, smallest, stopped)
    most = whole_batch(config) if dynamic else whole_batch(config) // longest_row(config)
    most = max(smallest, -(-most // (gpus * nodes)))
    if not limit(most):
        return Fit(knob, most, smallest, "")
    low, high = smallest, most  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if limit(middle) else (middle, high)
    return Fit(knob, low, smallest, limit(low + 1))


def longest_row(config: Mapping[str, Any]) -> int:
    """Tokens of the longest row, the least budget per GPU that verl takes, after sequence parallelism."""
    if "actor_rollout_ref" in config:
        tokens = int(get(config, "data.max_prompt_length", 512)) + int(
            get(config, "data.max_response_length", 512)
        )
        parallel = int(get(config, "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size", 1))
    else:
        tokens = int(get(config, "data.max_length", 1024)) * (2 if "dpo" in config else 1)
        parallel = int(get(config, "engine.ulysses_sequence_parallel_size", 1))
    return -(-tokens // parallel)


def whole_batch(config: Mapping[str, Any]) -> int:
    """Tokens of the rows of one update at their longest, over all processes."""
    if "actor_rollout_ref" in config:
        rows = int(get(config, "actor_rollout_ref.actor.ppo_mini_batch_size", 256))
        rows *= int(get(config, "actor_rollout_ref.rollout.n", 1))
    else:
        rows = int(get(config, "data.train_batch_size", 256))
    return rows * longest_row(config)
