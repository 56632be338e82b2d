"""PPO end to end on the CPU: actor and critic learn, reward sources, and a killed run that repeats itself."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import tiny_model
from tiny_scorer import tiny_scorer

from .conftest import Run, Trainer, wait_for_step

pytestmark = pytest.mark.e2e

# A model of 60,000 random weights with a byte tokenizer: no answer is right, so the reward counts letters.
LETTERS = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return sum(letter.islower() for letter in solution_str) / 16
"""
STEPS = 6
SIZE = ("--max_prompt_length", "128", "--max_response_length", "16", "--batch_size", "16", "--test_freq", "0")
ADAPTIVE = ("--kl_mode", "reward", "--kl_controller", "adaptive", "--kl_coef", "0.05", "--kl_horizon", "200")
LOSSES = ("actor/pg_loss", "critic/vf_loss", "actor/grad_norm", "critic/grad_norm", "critic/score/mean")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def flags(base: Path) -> tuple[str, ...]:
    """What every run here has: the tiny model, its reward, exact arithmetic, no trial of the reward on rows."""
    reward = base.parent / "letters.py"
    reward.write_text(LETTERS)
    return (
        *("--device", "cpu", "--cpu_dtype", "float32", "--no-preflight", "--model", str(base)),
        *("--reward_func_path", str(reward), "--lr", "1e-3", "--critic_learning_rate", "1e-3", *SIZE),
    )


@pytest.fixture(scope="module")
def whole(train: Trainer, flags: tuple[str, ...]) -> Run:
    """Six steps in one go: two updates a step, adaptive KL in the reward."""
    more = ("--steps", str(STEPS), "--save_freq", "2", "--mini_batch_size", "8")
    return train("ppo", "whole", *flags, *ADAPTIVE, *more).check()


def test_losses_are_finite_and_the_critic_learns(whole: Run, base: Path) -> None:
    assert sorted(step for step in whole.metrics if step) == list(range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        assert all(math.isfinite(whole.metrics[step][name]) for name in LOSSES), whole.metrics[step]
    # A language model brings no value head: it starts at zero and moves.
    assert whole.metrics[1]["critic/values/mean"] == 0
    assert whole.metrics[STEPS]["critic/values/mean"] != 0
    # Adaptive: the weight of the KL moves from step to step.
    weights = [whole.metrics[step]["actor/reward_kl_penalty_coeff"] for step in range(1, STEPS + 1)]
    assert weights[0] == 0.05
    assert len(set(weights)) == STEPS
    assert whole.record["state"] == "finished"


def test_checkpoint_holds_actor_and_critic(whole: Run, base: Path) -> None:
    step = whole.checkpoints / f"global_step_{STEPS}"
    actor = load_file(next((step / "actor" / "huggingface").glob("*.safetensors")))
    critic = torch.load(step / "critic" / "model_world_size_1_rank_0.pt", weights_only=False)
    before = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    for after in (
        actor[name],
        critic[name].full_tensor() if hasattr(critic[name], "full_tensor") else critic[name],
    ):
        assert not torch.allclose(after.float(), before[name].float(), atol=1e-6)
    assert "score.weight" in critic
    assert (step / "kl_coef.txt").is_file()
    # Only the newest is kept, critic included.
    assert [path.parent.name for path in whole.checkpoints.glob("global_step_*/critic")] == [step.name]


def samples(run: Run, step: int) -> list[tuple[str, str]]:
    lines = (run.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()
    return sorted((row["input"], row["output"]) for row in map(json.loads, lines))


@pytest.mark.matrix
def test_killed_and_resumed_run_repeats_the_uninterrupted_one(
    train: Trainer, flags: tuple[str, ...], whole: Run
) -> None:
    killed_in = random.SystemRandom().randint(3, STEPS)
    more = ("--steps", str(STEPS), "--save_freq", "2", "--mini_batch_size", "8")
    run, process = train.start("ppo", "killed", *flags, *ADAPTIVE, *more)
    wait_for_step(run, killed_in - 1, process)
    process.kill()
    process.wait()
    resumed = train("ppo", "killed", "--resume", "killed", "--no-preflight").check()
    begin = resumed.record["attempts"][-1]["resumed_from_step"]
    assert begin in (2, 4)
    for step in range(1, STEPS + 1):
        assert samples(resumed, step) == samples(whole, step), (killed_in, step)
        for name in (*LOSSES, "actor/reward_kl_penalty_coeff"):
            assert resumed.metrics[step][name] == pytest.approx(
                whole.metrics[step][name], rel=1e-4, abs=1e-6
            ), (
                killed_in,
                step,
                name,
            )


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_scorer(tmp_path_factory.mktemp("scorer"))


def reward_parts(run: Run) -> list[dict]:
    lines = [
        line for path in run.folder.glob("reward_parts-*.jsonl") for line in path.read_text().splitlines()
    ]
    return [json.loads(line)["parts"] for line in lines]


def test_reward_model_scores_in_the_worker(train: Trainer, flags: tuple[str, ...], scorer: Path) -> None:
    run = train(
        "ppo", "model", *flags, "--smoke", "--reward_source", "model", "--reward_model_path", str(scorer)
    )
    assert sorted(step for step in run.check().metrics if step) == [1, 2]
    parts = reward_parts(run)
    assert len({part["raw"] for part in parts}) > 8
    assert all(part["score"] == part["raw"] for part in parts)


@pytest.mark.matrix
def test_mix_with_a_served_reward_model(train: Trainer, flags: tuple[str, ...], scorer: Path) -> None:
    config = scorer.parent / "served.yaml"
    config.write_text("serve: server\nmax_length: 256\nscale: [-10, 10]\n")
    source = ("--reward_source", "mix", "--reward_weights", "function=0.75,model=0.25", "--kl_mode", "loss")
    model = ("--reward_model_path", str(scorer), "--reward_model_config", str(config))
    run = train("ppo", "mix", *flags, "--smoke", *source, *model).check()
    parts = reward_parts(run)
    assert len({part["model"] for part in parts}) > 8
    for part in parts:
        assert part["score"] == pytest.approx(0.75 * part["function"] + 0.25 * part["model"])
    assert run.metrics[2]["actor/kl_loss"] >= 0


@pytest.mark.matrix
def test_lora_policy_with_a_full_critic(train: Trainer, flags: tuple[str, ...]) -> None:
    run = train(
        "ppo", "lora", *flags, "--smoke", "--use_lora", "--lora_rank", "8", "--critic_warmup", "1"
    ).check()
    assert "actor/pg_loss" not in run.metrics[1]
    assert math.isfinite(run.metrics[2]["actor/pg_loss"])
    step = run.checkpoints / "global_step_2"
    assert (step / "actor" / "lora_train_meta.json").is_file()
    assert not list(step.glob("actor/huggingface/*.safetensors"))


@pytest.mark.matrix
def test_default_run_learns(train: Trainer) -> None:
    run = train("ppo", "default", "--device", "cpu", "--save_freq", "0").check()
    reward = [run.metrics[step]["critic/score/mean"] for step in range(1, 21)]
    assert sum(reward[-5:]) / 5 - sum(reward[:5]) / 5 >= 0.2, reward
    accuracy = "val-core/val/acc/mean@1"
    assert run.metrics[20][accuracy] > run.metrics[0][accuracy]
