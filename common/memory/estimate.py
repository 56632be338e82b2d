"""From a resolved verl config to bytes per GPU and per host, phase by phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.memory import engine_memory as memory
from common.memory import rollout as sampling
from common.memory.roles import Roles, engine_roles, rl_roles
from common.memory.rollout import Rollout
from common.memory.runtime import CUDA_CONTEXT, Runtime, runtime
from common.memory.settings import Engine, plain, remarks

Parts = dict[str, int]
# Parts that no tensor of the trainer makes.
NOT_TORCH = ("programs", "vLLM", "reward")


@dataclass(frozen=True)
class Phase:
    """One phase of a step.

    Attributes:
        gpu_parts: named bytes of one GPU; empty on the CPU.
        host_parts: named bytes of one node's memory.
    """

    name: str
    gpu_parts: Parts
    host_parts: Parts

    @property
    def parts(self) -> Parts:
        """Named bytes where the models live: of one GPU, or on the CPU of one node."""
        return self.gpu_parts or self.host_parts

    @property
    def gpu_bytes(self) -> int:
        """Bytes of one GPU; 0 on the CPU."""
        return sum(self.gpu_parts.values())

    @property
    def host_bytes(self) -> int:
        """Bytes of one node's memory."""
        return sum(self.host_parts.values())


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Attributes:
        phases: in the order of a step.
        checkpoint_bytes: of one checkpoint on disk, over all nodes.
        parameters, trainable: weights of the policy, and how many of them learn.
        kv_tokens: tokens that a vLLM engine's cache holds; 0 without rollouts or with an unknown GPU.
        kv_needed: tokens of the longest sequence that vLLM insists on.
        gpu_memory: the bytes of a GPU that it was computed for, if any.
        notes: assumptions that a reader has to know.
    """

    phases: list[Phase]
    checkpoint_bytes: int
    parameters: int
    trainable: int
    kv_tokens: int = 0
    kv_needed: int = 0
    gpu_memory: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> Phase:
        """The phase that takes most of a GPU; on the CPU, most of the host."""
        return max(self.phases, key=lambda phase: (phase.gpu_bytes, phase.host_bytes))

    @property
    def host_peak(self) -> Phase:
        """The phase that takes most of the host's memory."""
        return max(self.phases, key=lambda phase: phase.host_bytes)


def estimate(
    config: Any,
    model_config: Mapping[str, Any],
    *,
    gpus: int,
    nodes: int = 1,
    device: str = "cuda",
    gpu_memory: int | None = None,
    critic_config: Mapping[str, Any] | None = None,
    reward_config: Mapping[str, Any] | None = None,
) -> Estimate:
    """Memory of a run, from its config alone.

    Args:
        config: the resolved verl config (DictConfig or dict) of `main_ppo`, `sft_trainer` or `dpo.dpo_trainer`.
        model_config: the content of the policy's config.json.
        gpus: per node; on the CPU, processes.
        device: "cuda" (or "gpu"), or "cpu", where everything counts as host memory.
        gpu_memory: bytes of one GPU; vLLM's share of it is known only then.
        critic_config, reward_config: config.json of the critic and of the reward model, where they are other models.

    Raises:
        UnknownArchitectureError: a model whose layers are not known here, or an engine that is not FSDP.
    """
    tree = plain(config)
    notes = remarks(tree)
    cpu = device == "cpu"
    roles = (rl_roles if "actor_rollout_ref" in tree else engine_roles)(
        tree, model_config, gpus * nodes, gpus, cpu, critic_config or model_config, reward_config
    )
    own = runtime("rl" if roles.rollout else "dpo" if "dpo" in tree else "sft")
    phases = _on_cpu(roles, own) if cpu else _on_gpu(roles, own, gpu_memory)
    kv_tokens = 0
    if roles.rollout and (gpu_memory or roles.rollout.kv_bytes):
        cache = sampling.parts(roles.rollout, gpu_memory)["KV cache"]
        kv_tokens = cache // max(1, roles.rollout.kv_token)
    return Estimate(
        phases=phases,
        checkpoint_bytes=memory.checkpoint(roles.actor)
        + (memory.checkpoint(roles.critic) if roles.critic else 0),
        parameters=roles.actor.shape.parameters,
        trainable=roles.actor.trainable,
        kv_tokens=kv_tokens,
        kv_needed=roles.rollout.longest if roles.rollout else 0,
        gpu_memory=gpu_memory,
        notes=notes,
    )


def _on_gpu(roles: Roles, own: Runtime, gpu_memory: int | None) -> list[Phase]:
    """Phases where weights live on GPUs and processes on hosts."""
    actor, critic, rollout = roles.actor, roles.critic, roles.rollout
    local = actor.local_ranks

    def resident(awake: Engine | None, training: bool = False, sampling_now: bool = False) -> Parts:
        """What lies on a GPU whatever the phase computes."""
        found: Parts = {"CUDA contexts": CUDA_CONTEXT * (2 if rollout else 1)}
        for name, one in (("actor", actor), ("critic", critic)):
            if one is None:
                continue
            if one is awake or not one.param_offload:
                found[f"{name} weights"] = memory.weights(one)
            if (one is awake and training) or not one.optimizer_offload:
                found[f"{name} optimizer"] = memory.optimizer(one)
        if rollout and (sampling_now or not rollout.sleeps):
            found |= sampling.parts(rollout, gpu_memory)
        return found

    def host(extra: Parts | None = None) -> Parts:
        found: Parts = {"programs and libraries": own.fixed + own.per_rank * local}
        for name, one in (("actor", actor), ("critic", critic)):
            if one and one.param_offload:
                found[f"{name} weights (offloaded)"] = local * memory.pinned(one, one.master)
            if one and one.optimizer_offload:
                found[f"{name} optimizer (offloaded)"] = (
                    local * 2 * one.trainable * memory.pinned(one, one.master) // one.total
                )
        if roles.reference:
            found["reference weights"] = local * memory.pinned(roles.reference, roles.reference.master)
        if rollout and rollout.sleeps and rollout.level == 1:
            found["vLLM weights (asleep)"] = local * rollout.weights
        return found | (extra or {})

    phases = []
    models = [one for one in (actor, critic, roles.reference) if one]
    phases.append(
        Phase(
            "load",
            {name: size for name, size in resident(None).items() if not name.endswith("optimizer")},
            host({"model being read": max(memory.loading(one) for one in models)}),
        )
    )
    if rollout:
        phases.append(Phase("rollout", resident(None, sampling_now=True), host()))
    if roles.reward:
        phases.append(Phase("reward", resident(None) | _named(roles.reward, gpu_memory), host()))
    passes = [resident(actor) | memory.infer(actor, entropy=bool(rollout))]
    if roles.reference:
        passes.append(resident(None) | memory.infer(roles.reference, entropy=False))
    if critic:
        passes.append(resident(critic) | memory.infer(critic, entropy=False))
    phases.append(
        Phase("log_prob" if rollout else "validate", max(passes, key=lambda p: sum(p.values())), host())
    )
    if critic:
        phases.append(Phase("update_critic", resident(critic, training=True) | memory.update(critic), host()))
    phases.append(Phase("update_actor", resident(actor, training=True) | memory.update(actor), host()))
    if rollout:
        sent = {
            "vLLM weights": rollout.weights,
            "weight transfer": min(rollout.bucket, rollout.weights) + actor.shape.largest * actor.master,
        }
        phases.append(Phase("update_weights", resident(actor) | sent, host()))
    written = {"state dict being written": max(memory.exported(one) for one in models)}
    whole = {"gathered weights": actor.shape.largest * actor.master}
    phases.append(Phase("save", resident(actor) | whole, host(written)))
    return phases


def _named(reward: Rollout, gpu_memory: int | None) -> Parts:
    return {
        f"reward model {k.removeprefix('vLLM ')}": v for k, v in sampling.parts(reward, gpu_memory).items()
    }


def _on_cpu(roles: Roles, own: Runtime) -> list[Phase]:
    """Phases where everything is host memory of one node."""
    actor, critic, rollout = roles.actor, roles.critic, roles.rollout
    local = actor.local_ranks

    def held(*, optimizers: bool = True) -> Parts:
        found: Parts = {"programs and libraries": own.fixed + own.per_rank * local}
        for name, one in (("actor", actor), ("critic", critic), ("reference", roles.reference)):
            if one is not None:
                found[f"{name} weights"] = local * memory.weights(one)
            if one is not None and optimizers and one is not roles.reference:
                found[f"{name} optimizer"] = local * memory.optimizer(one)
        for name, served in (("vLLM", rollout), ("reward model", roles.reward)):
            if served:
                found[f"{name} weights"] = local * served.weights
                found[f"{name} working memory"] = local * served.working
                found[f"{name} KV cache"] = local * served.kv_bytes
        if rollout:  # its copy of a bucket of weights (common/cpu/plugin.py), whose place the heap keeps
            found["vLLM received weights"] = local * rollout.bucket
        return found

    def every(parts: Parts) -> Parts:
        return {name: local * size for name, size in parts.items()}

    def phase(name: str, parts: Parts) -> Phase:
        trainer = sum(size for part, size in parts.items() if part.split(" ")[0] not in NOT_TORCH)
        return Phase(name, {}, parts | {"holes in the heap": round(trainer * own.holes[actor.compute])})

    models = [one for one in (actor, critic, roles.reference) if one]
    # The model as it was read stays while its shards are filled.
    phases = [phase("load", held(optimizers=False) | {"model being read": max(map(memory.loading, models))})]
    if rollout:
        phases.append(phase("rollout", held()))
    passes = [held() | every(memory.infer(one, entropy=one is actor)) for one in models]
    phases.append(phase("log_prob" if rollout else "validate", max(passes, key=lambda p: sum(p.values()))))
    if critic:
        phases.append(phase("update_critic", held() | every(memory.update(critic))))
    phases.append(phase("update_actor", held() | every(memory.update(actor))))
    if rollout:
        sent = {"weight transfer": local * (rollout.bucket + actor.shape.largest * actor.master)}
        phases.append(phase("update_weights", held() | sent))
    written = {"state dict being written": max(memory.exported(one) for one in models)}
    phases.append(phase("save", held() | written))
    return phases
