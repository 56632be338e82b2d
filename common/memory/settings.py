"""What of a resolved verl config decides how much memory an engine takes.

Keys are verl 0.9.1's own: ``trainer/config/{ppo_trainer,sft_trainer_engine}.yaml`` and what
``workers/engine_workers.py`` and ``trainer/ppo/v1/trainer_base.py`` make of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.memory.architecture import Shape, UnknownArchitectureError
from common.memory.lora import lora_parameters

_BYTES = {"fp32": 4, "float32": 4, "float": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2, "half": 2}
# verl.workers.config.critic: the critic's token budget where the config has none.
_CRITIC_BUDGET = 32768


def plain(config: Any) -> dict[str, Any]:
    """A config as nested dicts; OmegaConf's interpolations are resolved."""
    if isinstance(config, dict):
        return config
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def get(config: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a dotted path; *default* where it is absent or null."""
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return default if value is None else value


def dtype_bytes(name: Any, default: int) -> int:
    """Bytes of a dtype as verl's configs write it (``verl.utils.torch_dtypes``)."""
    return default if name is None else _BYTES[str(name).removeprefix("torch.")]


@dataclass(frozen=True)
class Engine:
    """One FSDP engine of verl: sizes in bytes or tokens, counts per process.

    Attributes:
        train_tokens, infer_tokens: of a micro-batch on one process, after sequence parallelism.
        scored: share of these tokens whose logits are computed.
        micro_batches: of an update on one process; from the second on, gradients are there from the start.
        head: unfused | flash | fused | wanted | answers: who turns hidden states into log-probs; value: a critic.
        entropies: of a policy that samples; SFT and DPO ask for none.
        lean: the CPU layers of common/cpu/lean_layers.py.
        offload_policy: weights in host memory, a layer at a time on the GPU (the reference).
    """

    shape: Shape
    adapter: int
    ranks: int
    local_ranks: int
    shard: int
    master: int
    compute: int
    reduce: int
    train_tokens: int
    infer_tokens: int
    scored: float
    micro_batches: int
    head: str
    entropies: bool
    checkpointing: bool
    entropy_update: bool
    entropy_chunk: int
    compiled_entropy: bool
    scaled_logits: bool
    reshard: bool
    no_sync: bool
    param_offload: bool
    optimizer_offload: bool
    offload_policy: bool
    lean: bool
    save: tuple[str, ...]

    @property
    def total(self) -> int:
        """Weights, the adapter's included."""
        return self.shape.parameters + self.adapter

    @property
    def trainable(self) -> int:
        """Weights with gradients."""
        return self.adapter or self.shape.parameters


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest row and of the part that has a loss; rows of an update over all processes."""

    row: int
    scored: int
    rows: int


def micro_batch(
    tokens: int | None, rows: int | None, lengths: Lengths, ranks: int, parallel: int
) -> tuple[int, int]:
    """(tokens per process, micro-batches) of an update.

    Source: ``verl.workers.engine.utils.prepare_micro_batches``: with a token budget, as many micro-batches as the
    tokens need; else rows by count.

    Args:
        tokens: the budget per process, or None.
        rows: rows per micro-batch where there is no budget.
        parallel: ranks that share a sequence.
    """
    groups = max(1, ranks // parallel)
    mine = max(1, -(-lengths.rows // groups)) * lengths.row
    whole = min(mine, tokens * parallel if tokens else (rows or 1) * lengths.row)
    return -(-whole // parallel), -(-mine // whole)


def engine(
    shape: Shape,
    model: Mapping[str, Any],
    own: Mapping[str, Any],
    lengths: Lengths,
    *,
    ranks: int,
    local_ranks: int,
    cpu: bool,
    head: str,
    train: tuple[int | None, int | None],
    infer: tuple[int | None, int | None],
    save: list[str] | tuple[str, ...] = (),
    entropies: bool = False,
    entropy_update: bool = False,
    scaled_logits: bool = False,
) -> Engine:
    """An engine from its two parts of the config.

    Args:
        model: HFModelConfig (``actor_rollout_ref.model``, ``critic.model``, ``model``).
        own: FSDPEngineConfig (``actor.fsdp_config``, ``ref.fsdp_config``, ``critic.fsdp``, ``engine``).
        head: see `Engine`; "" = by the model's config.
        train, infer: (token budget or None, rows of a micro-batch).
    """
    parallel = int(get(own, "ulysses_sequence_parallel_size", 1))
    forward_only = bool(get(own, "forward_only", False))
    size = int(get(own, "fsdp_size", -1))
    rank = int(get(model, "lora_rank", 0))
    tokens, count = micro_batch(*train, lengths, ranks, parallel)
    seen, _ = micro_batch(*infer, lengths, ranks, parallel)
    if not head:
        attention = get(model, "override_config.attn_implementation", "flash_attention_2")
        fused = bool(get(model, "use_fused_kernels", False))
        head = "fused" if fused else "flash" if attention == "flash_attention_2" else "unfused"
        if cpu and fused and parallel == 1:  # common/cpu/lean_engine.py
            head = "wanted"
    return Engine(
        shape=shape,
        adapter=lora_parameters(shape, rank, get(model, "target_modules", "all-linear")) if rank else 0,
        ranks=ranks,
        local_ranks=local_ranks,
        shard=ranks if size < 0 or size >= ranks else size,
        master=dtype_bytes(get(own, "model_dtype"), 2 if forward_only else 4),
        compute=dtype_bytes(get(own, "mixed_precision.param_dtype"), 2),
        reduce=dtype_bytes(get(own, "mixed_precision.reduce_dtype"), 4),
        train_tokens=tokens,
        infer_tokens=seen,
        # Positions whose next token nobody asks for are left out where the head knows them.
        scored=lengths.scored / lengths.row if head in ("wanted", "answers") else 1.0,
        micro_batches=count,
        head=head,
        checkpointing=bool(get(model, "enable_gradient_checkpointing", True)),
        entropies=entropies,
        entropy_update=entropy_update,
        entropy_chunk=int(get(own, "entropy_from_logits_chunk_size", 2048))
        if get(own, "entropy_from_logits_with_chunking", False)
        else 0,
        compiled_entropy=bool(get(own, "use_torch_compile", True)),
        scaled_logits=scaled_logits,
        reshard=bool(get(own, "reshard_after_forward", True)),
        no_sync=bool(get(own, "use_no_sync_for_gradient_accumulation", False)),
        param_offload=bool(get(own, "param_offload", False)) and not cpu,
        optimizer_offload=bool(get(own, "optimizer_offload", False)) and not cpu,
        # common/cpu/plugin.py keeps the reference where it is.
        offload_policy=(forward_only or bool(get(own, "offload_policy", False))) and not cpu,
        lean=cpu,
        save=tuple(save),
    )


def critic_budget(config: Mapping[str, Any]) -> int:
    """Tokens of a critic micro-batch: verl's V1 trainer takes one budget for both directions."""
    return int(get(config, "critic.ppo_infer_max_token_len_per_gpu", _CRITIC_BUDGET))


# Keys that change memory in a way that is not computed, with what the estimate is then.
_NOT_COMPUTED = {
    "enable_activation_offload": "activations are counted on the GPU, though they go to the host",
    "use_liger": "activations are counted without Liger's kernels, which keep fewer",
    "tiled_mlp.enabled": "activations are counted without the tiled MLP, which keeps fewer",
}


def remarks(config: Mapping[str, Any]) -> list[str]:
    """What the estimate does not compute of this config, a line each.

    Raises:
        UnknownArchitectureError: an engine that is not FSDP.
    """
    rl = "actor_rollout_ref" in config
    model = "actor_rollout_ref.model" if rl else "model"
    strategy = "actor_rollout_ref.actor.strategy" if rl else "engine.strategy"
    if (used := get(config, strategy, "fsdp")) not in ("fsdp", "fsdp2"):
        raise UnknownArchitectureError(f"{strategy}={used}: the memory estimate knows fsdp and fsdp2")
    found = [
        f"{model}.{key}: {said}"
        for key, said in _NOT_COMPUTED.items()
        if get(config, f"{model}.{key}", False)
    ]
    if rl and (engine_name := get(config, "actor_rollout_ref.rollout.name")) not in ("vllm", None):
        found.append(f"rollouts by {engine_name} are counted as vLLM's")
    return found
