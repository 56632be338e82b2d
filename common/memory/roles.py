"""Which engines a verl config asks for: actor, critic, reference, rollouts, reward model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.memory import rollout as sampling
from common.memory.architecture import read_shape, value_shape
from common.memory.rollout import Rollout
from common.memory.settings import Engine, Lengths, critic_budget, engine, get


@dataclass(frozen=True)
class Roles:
    """The engines of a run; all of them share the GPUs."""

    actor: Engine
    critic: Engine | None
    reference: Engine | None
    rollout: Rollout | None
    reward: Rollout | None


def rl_roles(
    tree: Mapping[str, Any],
    model_config: Mapping[str, Any],
    ranks: int,
    local: int,
    cpu: bool,
    critic_config: Mapping[str, Any],
    reward_config: Mapping[str, Any] | None,
) -> Roles:
    """verl's V1 PPO trainer: actor, reference, critic and rollouts in one pool."""
    a = get(tree, "actor_rollout_ref", {})
    shape = read_shape(model_config)
    prompt, answer = (
        int(get(tree, "data.max_prompt_length", 512)),
        int(get(tree, "data.max_response_length", 512)),
    )
    rows = int(get(a, "actor.ppo_mini_batch_size", 256)) * int(get(a, "rollout.n", 1))
    lengths = Lengths(prompt + answer, answer, rows)
    temperature = float(get(a, "rollout.temperature", 1.0))
    common: dict[str, Any] = {"ranks": ranks, "local_ranks": local, "cpu": cpu}

    def budget(part: str, prefix: str, name: str) -> tuple[int | None, int | None]:
        dynamic = bool(get(a, f"{part}.{prefix}use_dynamic_bsz", get(a, "actor.use_dynamic_bsz", False)))
        tokens = int(get(a, f"{part}.{name}_max_token_len_per_gpu", 16384))
        return (tokens if dynamic else None), int(get(a, f"{part}.{name}_micro_batch_size_per_gpu", 1))

    asked = budget("rollout", "log_prob_", "log_prob")
    actor = engine(
        shape, get(a, "model", {}), get(a, "actor.fsdp_config", {}), lengths, **common, head="",
        train=budget("actor", "", "ppo"), infer=asked,
        save=get(a, "actor.checkpoint.save_contents", ()),
        entropies=True,
        entropy_update=float(get(a, "actor.entropy_coeff", 0)) != 0 or bool(get(a, "actor.calculate_entropy", False)),
        scaled_logits=temperature != 1.0,
    )  # fmt: skip
    algorithm = get(tree, "algorithm", {})
    penalised = bool(get(algorithm, "use_kl_in_reward", False)) or bool(get(a, "actor.use_kl_loss", False))
    reference = None
    if penalised and not actor.adapter:  # with LoRA it is the actor with its adapter off
        asked = budget("ref", "log_prob_", "log_prob")
        reference = engine(
            shape, get(a, "model", {}), get(a, "ref.fsdp_config", {"forward_only": True}), lengths, **common,
            head="", train=asked, infer=asked, scaled_logits=temperature != 1.0,
        )  # fmt: skip
    critic = None
    if get(algorithm, "adv_estimator") == "gae" or get(tree, "critic.enable"):
        own = get(tree, "critic.fsdp", {})
        rows = int(get(tree, "critic.ppo_mini_batch_size", rows)) * int(get(a, "rollout.n", 1))
        micro = int(get(own, "micro_batch_size_per_gpu", 1))
        taken = (critic_budget(tree) if get(own, "use_dynamic_bsz", True) else None, micro)
        critic = engine(
            value_shape(read_shape(critic_config)), get(tree, "critic.model", {}), own,
            Lengths(lengths.row, answer, rows), **common, head="value", train=taken, infer=taken,
            save=get(tree, "critic.checkpoint.save_contents", ()),
        )  # fmt: skip
    reward = None
    own = get(tree, "reward.reward_model", {})
    if get(own, "enable", False) and reward_config and not get(own, "enable_resource_pool", False):
        reward = sampling.read_rollout(
            read_shape(reward_config), get(own, "rollout", {}), lora=False,
            model_length=int(get(reward_config, "max_position_embeddings", lengths.row)),
        )  # fmt: skip
    rollout = sampling.read_rollout(
        shape, get(a, "rollout", {}), lora=bool(actor.adapter),
        model_length=int(get(model_config, "max_position_embeddings", lengths.row)),
    )  # fmt: skip
    return Roles(actor, critic, reference, rollout, reward)


def engine_roles(
    tree: Mapping[str, Any],
    model_config: Mapping[str, Any],
    ranks: int,
    local: int,
    cpu: bool,
    _critic: Mapping[str, Any],
    _reward: Mapping[str, Any] | None,
) -> Roles:
    """SFT and DPO: one engine under torchrun; DPO asks its reference before it trains, with the same engine."""
    preference = "dpo" in tree
    data = get(tree, "data", {})
    row, batch = int(get(data, "max_length", 1024)), int(get(data, "train_batch_size", 256))
    scored = row
    if preference:
        # A pair in one row shares its prompt; else it is two rows.
        prompt = int(get(data, "max_prompt_length", row // 2))
        shared = str(get(tree, "dpo.share_prompt", "auto")).lower() != "false"
        shared = shared and int(get(tree, "engine.ulysses_sequence_parallel_size", 1)) == 1
        row, scored = 2 * row - (prompt if shared else 0), 2 * (row - prompt)
    dynamic = bool(get(data, "use_dynamic_bsz", True))
    taken = (
        int(get(data, "max_token_len_per_gpu", 8192)) if dynamic else None,
        int(get(data, "micro_batch_size_per_gpu", 4)),
    )
    actor = engine(
        read_shape(model_config), get(tree, "model", {}), get(tree, "engine", {}), Lengths(row, scored, batch),
        ranks=ranks, local_ranks=local, cpu=cpu, head="answers" if preference else "",
        train=taken, infer=taken, save=get(tree, "checkpoint.save_contents", ())
    )  # fmt: skip
    return Roles(actor, None, None, None, None)
