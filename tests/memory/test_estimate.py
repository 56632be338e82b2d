"""How the estimate follows the config that verl sees."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from common.memory import Estimate, UnknownArchitectureError, estimate, lora_parameters, read_shape
from common.memory.compose import compose
from common.memory.models import known_models

GIB = 1 << 30
MODEL = known_models()["Qwen2.5-7B"]
SMALL = known_models()["Qwen2.5-0.5B"]


@pytest.fixture(scope="module")
def configs() -> dict[str, dict[str, Any]]:
    return {
        method: compose(method, ["--model", "any", "--gpus", "8"]) for method in ("sft", "dpo", "grpo", "ppo")
    }


@pytest.fixture
def config(configs: dict[str, dict[str, Any]]) -> Any:
    return lambda method: copy.deepcopy(configs[method])


def run(tree: Any, model: Any = MODEL, **more: Any) -> Estimate:
    return estimate(tree, model, **{"gpus": 8, **more})


def phase(found: Estimate, name: str) -> Any:
    return next(phase for phase in found.phases if phase.name == name)


def test_phases_in_the_order_of_a_step(config: Any) -> None:
    assert [p.name for p in run(config("ppo")).phases] == [
        "load", "rollout", "log_prob", "update_critic", "update_actor", "update_weights", "save",
    ]  # fmt: skip
    assert "update_critic" not in [p.name for p in run(config("grpo")).phases]
    for method in ("sft", "dpo"):
        assert [p.name for p in run(config(method)).phases] == ["load", "validate", "update_actor", "save"]


def test_sharded_states_take_sixteen_bytes_per_weight(config: Any) -> None:
    weights = read_shape(MODEL).parameters
    for gpus in (1, 8):
        parts = phase(run(config("sft"), gpus=gpus), "update_actor").gpu_parts
        assert parts["actor weights"] == 4 * weights // gpus
        assert parts["actor optimizer"] == 8 * weights // gpus
    tree = config("sft")
    tree["engine"]["model_dtype"] = "bf16"
    assert phase(run(tree), "update_actor").gpu_parts["actor optimizer"] == 4 * weights // 8
    tree["engine"]["fsdp_size"] = 4  # hybrid: two replicas of four shards
    assert phase(run(tree), "update_actor").gpu_parts["actor weights"] == 2 * weights // 4
    assert phase(run(tree, nodes=2), "update_actor").gpu_parts["actor weights"] == 2 * weights // 4


def test_offload_moves_states_to_the_host_between_phases(config: Any) -> None:
    tree = config("grpo")
    own = tree["actor_rollout_ref"]["actor"]["fsdp_config"]
    own["param_offload"] = own["optimizer_offload"] = True
    moved, kept = run(tree), run(config("grpo"))
    weights = 4 * read_shape(MODEL).parameters
    assert "actor weights" not in phase(moved, "rollout").gpu_parts
    assert "actor optimizer" not in phase(moved, "log_prob").gpu_parts
    assert phase(moved, "update_actor").gpu_bytes == phase(kept, "update_actor").gpu_bytes
    # Pinned memory is rounded up to powers of two.
    extra = phase(moved, "update_actor").host_bytes - phase(kept, "update_actor").host_bytes
    assert 3 * weights <= extra <= 2 * 3 * weights


def test_only_an_adapter_learns_with_lora(config: Any) -> None:
    tree = config("sft")
    tree["model"].update(lora_rank=32)
    tree["checkpoint"]["save_contents"] = ["model", "optimizer", "extra"]
    found = run(tree, gpus=1)
    adapter = lora_parameters(read_shape(MODEL), 32)
    assert found.trainable == adapter
    parts = phase(found, "update_actor").gpu_parts
    assert parts["actor weights"] == 4 * (read_shape(MODEL).parameters + adapter)
    assert parts["actor optimizer"] == 8 * adapter
    assert parts.get("gradients", 0) <= 4 * adapter
    assert found.checkpoint_bytes < run(config("sft"), gpus=1).checkpoint_bytes / 2


def test_a_reference_lies_in_the_host_and_lora_needs_none(config: Any) -> None:
    tree = config("grpo")
    with_reference = phase(run(tree), "log_prob").host_parts
    assert with_reference["reference weights"] >= 4 * read_shape(MODEL).parameters
    tree["actor_rollout_ref"]["actor"]["use_kl_loss"] = False
    assert "reference weights" not in phase(run(tree), "log_prob").host_parts
    tree["actor_rollout_ref"]["actor"]["use_kl_loss"] = True
    tree["actor_rollout_ref"]["model"]["lora_rank"] = 8
    lora = phase(run(tree), "log_prob").host_parts
    assert "reference weights" not in lora
    assert "vLLM weights (asleep)" in lora  # verl sends the adapter alone, so vLLM keeps its weights


def test_activations_follow_tokens_checkpointing_and_sequence_parallelism(config: Any) -> None:
    def activations(**changes: Any) -> int:
        tree = config("sft")
        tree["model"]["enable_gradient_checkpointing"] = changes.pop("checkpointing", True)
        tree["engine"]["ulysses_sequence_parallel_size"] = changes.pop("parallel", 1)
        tree["data"].update(changes)
        return phase(run(tree), "update_actor").gpu_parts["activations"]

    base = activations(max_token_len_per_gpu=4096)
    assert activations(max_token_len_per_gpu=8192) == pytest.approx(2 * base, rel=0.01)
    assert activations(max_token_len_per_gpu=4096, checkpointing=False) > 5 * base
    # The budget is per GPU; static rows are shared by the GPUs of a sequence.
    assert activations(max_token_len_per_gpu=4096, parallel=2) == base
    static = {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 2}
    assert activations(**static, parallel=2) == pytest.approx(activations(**static) / 2, rel=0.01)
    # No more tokens than the batch has.
    assert activations(max_token_len_per_gpu=10**7) == activations(max_token_len_per_gpu=2048 * 64 // 8)


def test_fused_kernels_and_entropy_change_the_logits(config: Any) -> None:
    def logits(name: str = "update_actor", **changes: Any) -> int:
        tree = config("grpo")
        tree["actor_rollout_ref"]["actor"]["ppo_max_token_len_per_gpu"] = 65536
        tree["actor_rollout_ref"]["model"]["use_fused_kernels"] = changes.get("fused", False)
        tree["actor_rollout_ref"]["model"].setdefault("override_config", {})
        tree["actor_rollout_ref"]["model"]["override_config"] = {
            "attn_implementation": changes.get("attention")
        }
        tree["actor_rollout_ref"]["actor"]["entropy_coeff"] = changes.get("entropy", 0.0)
        return phase(run(tree, SMALL), name).gpu_parts.get("logits", 0)

    assert logits() == 65536 * SMALL["vocab_size"] * 2  # flash-attn writes the gradient over the logits
    assert logits(attention="sdpa") == 5 * logits()
    assert logits(entropy=0.01) > logits()
    assert logits(fused=True) < logits() / 10


def test_vllm_gets_its_share_and_the_cache_is_what_is_left(config: Any) -> None:
    found = run(config("grpo"), gpu_memory=80 * GIB)
    parts = {name: size for name, size in phase(found, "rollout").gpu_parts.items() if "actor" not in name}
    del parts["CUDA contexts"]
    assert sum(parts.values()) == 40 * GIB
    assert parts["vLLM weights"] == 2 * read_shape(MODEL).parameters
    # Two tensors of 4 heads of 128 in bf16 per token and layer.
    assert found.kv_tokens == parts["KV cache"] // (2 * 2 * 28 * 4 * 128)
    assert found.kv_needed == MODEL["max_position_embeddings"]
    tree = config("grpo")
    tree["actor_rollout_ref"]["rollout"]["tensor_model_parallel_size"] = 2
    halved = run(tree, gpu_memory=80 * GIB)
    assert phase(halved, "rollout").gpu_parts["vLLM weights"] == read_shape(MODEL).parameters
    assert halved.kv_tokens > 2 * found.kv_tokens
    # It sleeps while the trainer works, unless it is told not to.
    assert "KV cache" not in phase(found, "update_actor").gpu_parts
    tree["actor_rollout_ref"]["rollout"]["free_cache_engine"] = False
    assert "KV cache" in phase(run(tree, gpu_memory=80 * GIB), "update_actor").gpu_parts


def test_a_critic_and_a_reward_model_of_their_own(config: Any) -> None:
    same, small = run(config("ppo")), run(config("ppo"), critic_config=SMALL)
    assert (
        phase(small, "update_actor").gpu_parts["critic weights"]
        < phase(same, "update_actor").gpu_parts["critic weights"] / 10
    )
    tree = config("ppo")
    tree["reward"]["reward_model"].update(enable=True, enable_resource_pool=False)
    tree["reward"]["reward_model"]["rollout"].update(name="vllm", gpu_memory_utilization=0.3)
    rewarded = run(tree, reward_config=SMALL, gpu_memory=80 * GIB)
    assert sum(s for n, s in phase(rewarded, "reward").gpu_parts.items() if "reward" in n) == round(
        0.3 * 80 * GIB
    )


def test_the_host_holds_the_model_while_it_is_read_and_written(config: Any) -> None:
    weights = 4 * read_shape(MODEL).parameters
    found = run(config("sft"))
    assert phase(found, "load").host_parts["model being read"] == weights  # untied: one rank reads
    assert phase(found, "save").host_parts["state dict being written"] == weights
    tied = phase(run(config("sft"), SMALL), "load").host_parts["model being read"]
    assert tied == 8 * 4 * read_shape(SMALL).parameters  # tied: each of the eight reads
    tree = config("sft")
    tree["checkpoint"]["save_contents"] = ["model", "optimizer"]
    assert run(tree).checkpoint_bytes == 3 * weights


def test_on_the_cpu_everything_is_host_memory() -> None:
    tree = compose("grpo", ["--device", "cpu", "--model", "smollm2", "--cpu_dtype", "float32"])
    found = estimate(tree, SMALL, gpus=1, device="cpu")
    assert all(phase.gpu_bytes == 0 for phase in found.phases)
    assert found.peak is found.host_peak
    assert found.peak.host_parts["vLLM KV cache"] == 256 << 20
    assert found.peak.host_parts["actor weights"] == 4 * read_shape(SMALL).parameters
    assert "programs and libraries" in found.peak.parts


def test_what_is_not_computed_is_said(config: Any) -> None:
    tree = config("grpo")
    assert run(tree).notes == []
    tree["actor_rollout_ref"]["model"]["use_liger"] = True
    tree["actor_rollout_ref"]["rollout"]["name"] = "sglang"
    notes = run(tree).notes
    assert [note.split(":")[0] for note in notes] == [
        "actor_rollout_ref.model.use_liger",
        "rollouts by sglang are counted as vLLM's",
    ]
    tree["actor_rollout_ref"]["actor"]["strategy"] = "megatron"
    with pytest.raises(
        UnknownArchitectureError, match=r"actor\.strategy=megatron: the memory estimate knows fsdp"
    ):
        run(tree)
