"""The trainer on verl's engine against DPO written plainly, and against itself in every way it can compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_world import BATCH, STEPS, World, tiny_model
from plain_dpo import train

from dpo.batches import PairBatches
from dpo.preference_data import Limits, load_pairs

pytestmark = pytest.mark.slow
KEYS = ("loss", "grad_norm", "rewards/margins")
LORA = ("model.lora_rank=4", "model.lora_alpha=8", "model.target_modules=[q_proj,v_proj]")


def starting_adapter(world: World) -> Path:
    """A LoRA adapter whose effect is not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float32), config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(world.folder / "adapter")
    return world.folder / "adapter"


@pytest.fixture(scope="module")
def runs(world: World, tokenizer: Any) -> dict[str, dict[int, dict[str, float]]]:
    """Everything that one process can show, in one start of it."""
    adapter = [*LORA, f"model.lora_adapter_path={starting_adapter(world)}"]
    other = tiny_model(world.folder / "other", tokenizer, seed=9)
    untied = tiny_model(world.folder / "untied", tokenizer, seed=4, tied=False)
    short, resumed = ["trainer.save_freq=4"], ["trainer.resume_mode=auto"]
    wanted = {
        "one": [f"data.val_files={world.data}"],
        "separate": ["dpo.share_prompt=false"],
        "many": ["data.max_token_len_per_gpu=260"],
        "static": [
            "data.use_dynamic_bsz=False",
            "data.micro_batch_size_per_gpu=2",
            f"data.val_files={world.data}",
        ],
        "checkpointing": ["model.enable_gradient_checkpointing=True"],
        "other": [f"dpo.reference_path={other}"],
        "untied": [f"model.path={untied}"],
        "lora_base": adapter,
        "lora_adapter": [*adapter, "dpo.lora_reference=adapter"],
        "simpo": ["dpo.loss_type=simpo", "dpo.beta=2.0"],
        "rpo": ["dpo.rpo_alpha=1.0"],
    }
    listed: list[dict[str, Any]] = [
        {"name": name, "overrides": world.overrides(*more)} for name, more in wanted.items()
    ]
    listed.append({"name": "killed", "overrides": world.overrides(*short), "stop_after": 6})
    found = world.run(listed)
    again = [{"name": "killed", "overrides": world.overrides(*short, *resumed)}]
    return {**found, "resumed": world.run(again)["killed"]}


def series(metrics: dict[int, dict[str, float]], first: int = 1) -> list[dict[str, float]]:
    return [{key: metrics[step][f"train/{key}"] for key in KEYS} for step in range(first, STEPS + 1)]


def assert_same(left: list[dict[str, float]], right: list[dict[str, float]], tolerance: float = 1e-5) -> None:
    for a, b in zip(left, right, strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance)


def plain(
    world: World, tokenizer: Any, model: Path, reference: Any = None, adapter: Path | None = None
) -> list[dict[str, float]]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def load(path: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")

    policy = load(model)
    if adapter:
        policy = PeftModel.from_pretrained(policy, adapter, is_trainable=True)
    pairs = load_pairs(world.data, tokenizer, Limits(256, 128)).pairs
    batches = PairBatches(len(pairs), BATCH, 0, 1, 1)
    order = [batch for epoch in range(2) for batch in batches.epoch(epoch)][:STEPS]
    return train(policy, pairs, order, lr=1e-3, clip=1.0, beta=0.1, reference=reference or load(model))


def test_eight_steps_equal_plain_pytorch(world: World, runs: dict, tokenizer: Any) -> None:
    assert_same(series(runs["one"]), plain(world, tokenizer, world.model))


def test_a_head_of_its_own_equals_plain_pytorch(world: World, runs: dict, tokenizer: Any) -> None:
    assert_same(series(runs["untied"]), plain(world, tokenizer, world.folder / "untied"))


def test_another_reference_model_equals_plain_pytorch(world: World, runs: dict, tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(world.folder / "other", dtype=torch.float32)
    assert runs["other"][1]["train/loss"] != pytest.approx(0.693147, abs=1e-3)
    assert_same(series(runs["other"]), plain(world, tokenizer, world.model, other))


@pytest.mark.parametrize("layout", ["separate", "many", "static", "checkpointing"])
def test_ways_to_compute_the_same(runs: dict, layout: str) -> None:
    assert_same(series(runs[layout]), series(runs["one"]))


def test_a_resumed_run_equals_the_uninterrupted_one(runs: dict) -> None:
    assert min(step for step, values in runs["resumed"].items() if "train/loss" in values) == 5
    assert_same(series(runs["resumed"], 5), series(runs["one"], 5), 1e-6)


def test_the_base_is_the_reference_of_a_starting_adapter(world: World, runs: dict, tokenizer: Any) -> None:
    assert abs(runs["lora_base"][1]["train/rewards/margins"]) > 0.01
    assert_same(
        series(runs["lora_base"]), plain(world, tokenizer, world.model, adapter=world.folder / "adapter")
    )


def test_the_starting_adapter_can_be_the_reference(runs: dict) -> None:
    first = runs["lora_adapter"][1]
    assert first["train/loss"] == pytest.approx(0.693147, abs=1e-5)
    assert first["train/rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert first["train/logps/chosen"] == pytest.approx(runs["lora_base"][1]["train/logps/chosen"], rel=1e-5)


def test_validation_counts_every_pair_once_in_any_batching(runs: dict) -> None:
    one, static = runs["one"], runs["static"]
    assert sorted(step for step in one if "val/loss" in one[step]) == [0, 4, STEPS]
    assert one[0]["val/loss"] == pytest.approx(0.693147, abs=1e-5)
    assert one[0]["val/rewards/accuracies"] == pytest.approx(0.5, abs=0.5)
    for step in (0, 4, STEPS):
        left = {key: value for key, value in one[step].items() if key.startswith("val/") and "acc" not in key}
        assert left == pytest.approx({key: static[step][key] for key in left}, rel=1e-5, abs=1e-5)


def test_other_losses_run_on_the_engine(runs: dict) -> None:
    assert runs["simpo"][1]["train/logps/ref_chosen"] == 0
    # RPO adds the chosen answers' loss per token to DPO's log 2.
    assert runs["rpo"][1]["train/loss"] > 0.7
    assert runs["rpo"][STEPS]["train/rewards/chosen"] > runs["one"][STEPS]["train/rewards/chosen"]


def test_metrics_are_those_the_field_names(runs: dict) -> None:
    step = runs["one"][1]
    sides = [f"train/{group}/{side}" for group in ("rewards", "logps") for side in ("chosen", "rejected")]
    more = ["train/loss", "train/rewards/margins", "train/rewards/accuracies", "train/grad_norm", "train/lr"]
    assert {*sides, *more, "perf/throughput", "perf/time_per_step", "train/global_tokens"} <= step.keys()
    assert all(isinstance(value, (int, float)) for value in step.values())


def test_two_processes_equal_one_by_data_and_by_sequence_parallelism(world: World, runs: dict) -> None:
    two = world.run(
        [
            {"name": "two", "overrides": world.overrides(f"data.val_files={world.data}")},
            {"name": "ulysses", "overrides": world.overrides("engine.ulysses_sequence_parallel_size=2")},
        ],
        processes=2,
    )
    assert_same(series(two["two"]), series(runs["one"]))
    assert_same(series(two["ulysses"]), series(runs["one"]))
    assert two["two"][STEPS]["val/loss"] == pytest.approx(runs["one"][STEPS]["val/loss"], abs=1e-5)
