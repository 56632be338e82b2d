"""What ppo/train.sh hands to verl, and what it refuses."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path

import pytest
from launcher.conftest import ROOT, Launcher, composed, launch  # noqa: F401  (a fixture)

ACTOR, CRITIC = "actor_rollout_ref.actor", "critic"


def keys(launch: Launcher, *flags: str, **env: str) -> dict[str, str]:  # noqa: F811
    done = launch("--name", "x", "--no-preflight", "--device", "cpu", *flags, method="ppo", **env)
    assert done.code == 0, done.err
    return done.overrides


def test_default_run_on_the_cpu(launch: Launcher) -> None:  # noqa: F811
    found = keys(launch)
    assert found["algorithm.adv_estimator"] == "gae"
    assert (found["actor_rollout_ref.rollout.n"], found["data.train_batch_size"]) == ("1", "64")
    assert found["critic.model.path"] == found["actor_rollout_ref.model.path"]
    assert found["critic.model.override_config.attn_implementation"] == "sdpa"
    assert found["critic.model.use_remove_padding"] == "False"
    assert found["critic.optim.lr"] == "1e-4"
    assert found["critic.ppo_infer_max_token_len_per_gpu"] == "512"
    assert found["trainer.critic_warmup"] == "0"
    assert found["trainer.max_critic_ckpt_to_keep"] == found["trainer.max_actor_ckpt_to_keep"] == "1"


@pytest.mark.parametrize(
    ("mode", "in_reward", "in_loss"),
    [("reward", "True", "False"), ("loss", "False", "True"), ("none",) + ("False",) * 2],
)
def test_one_knob_says_where_the_kl_counts(launch: Launcher, mode: str, in_reward: str, in_loss: str) -> None:  # noqa: F811
    found = keys(launch, "--kl_mode", mode, "--kl_coef", "0.02", "--kl_estimator", "abs")
    assert found["algorithm.use_kl_in_reward"] == in_reward
    assert found[f"{ACTOR}.use_kl_loss"] == in_loss
    assert found["algorithm.kl_ctrl.kl_coef"] == found[f"{ACTOR}.kl_loss_coef"] == "0.02"
    assert found["algorithm.kl_penalty"] == found[f"{ACTOR}.kl_loss_type"] == "abs"


def test_warmup_means_that_many_steps(launch: Launcher) -> None:  # noqa: F811
    """verl updates the actor once ``critic_warmup <= global_steps``, and the first step is 1."""
    assert keys(launch, "--critic_warmup", "3")["trainer.critic_warmup"] == "4"


def test_adaptive_weight_goes_on_where_it_was(launch: Launcher) -> None:  # noqa: F811
    flags = ("--kl_mode", "reward", "--kl_controller", "adaptive")
    first = keys(launch, *flags)
    assert first["trainer.checkpoint_callback_class"] == "ppo.kl_state.SaveKLCoefficient"
    folder = launch.fake_checkpoint("x", 10, method="ppo") / "global_step_10"
    (folder / "kl_coef.txt").write_text("0.0123\n")
    resumed = launch("--resume", "x", "--no-preflight", method="ppo")
    assert resumed.overrides["algorithm.kl_ctrl.kl_coef"] == "0.0123"
    (folder / "kl_coef.txt").unlink()
    lost = launch("--resume", "x", "--no-preflight", method="ppo")
    assert lost.overrides["algorithm.kl_ctrl.kl_coef"] == "0.001"
    assert "kl_coef.txt is missing: the KL weight starts again at KL_COEF=0.001" in lost.err


@pytest.mark.parametrize("flash_attn", [True, False])
def test_gpu_machine_with_and_without_flash_attn(launch: Launcher, tmp_path: Path, flash_attn: bool) -> None:  # noqa: F811
    smi = launch.folder / "nvidia-smi"
    smi.write_text('#!/bin/sh\necho "GPU 0: A (UUID: GPU-1)"\n')
    smi.chmod(0o755)
    if flash_attn:
        (tmp_path / "flash_attn.py").touch()
    env = {"PATH": f"{launch.folder}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}
    done = launch("--model", "smollm2", "--name", "g", "--no-preflight", "--dry-run", method="ppo", **env)
    assert done.code == 0, done.err
    packed = "critic.model.override_config.attn_implementation=sdpa"
    assert (packed in done.out) is not flash_attn
    modules = "common.verl_fixes" if flash_attn else "common.packed_sdpa,common.verl_fixes"
    assert f"VERL_USE_EXTERNAL_MODULES={modules}".replace(",", "\\,") in done.out
    assert "trainer.device" not in done.out


@pytest.mark.slow  # imports verl
def test_memory_knobs_of_the_critic_are_what_its_engine_reads(launch: Launcher) -> None:  # noqa: F811
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.utils.config import omega_conf_to_dataclass

    flags = ("--critic_micro_batch_size", "4", "--critic_offload", "--critic_gradient_checkpointing")
    words = launch.dry_run(
        *("--name", "x", "--device", "cpu", "--no-preflight", "--critic_max_tokens_per_gpu", "700", *flags),
        *("--use_dynamic_bsz", "false"),
        method="ppo",
    )
    critic = omega_conf_to_dataclass(composed(words, "ppo").critic)
    assert critic.engine.use_dynamic_bsz is False
    assert critic.engine.micro_batch_size_per_gpu == critic.engine.infer_micro_batch_size_per_gpu == 4
    assert critic.engine.param_offload and critic.engine.optimizer_offload
    assert critic.model.enable_gradient_checkpointing
    assert critic.ppo_infer_max_token_len_per_gpu == 700
    # The trainer takes both budgets from that key and reads none of those that look like it.
    setup = inspect.getsource(PPOTrainer._setup)
    assert "critic_cfg.engine.max_token_len_per_gpu = critic_cfg.ppo_infer_max_token_len_per_gpu" in setup
    assert "critic_cfg.ppo_max_token_len_per_gpu" not in setup


@pytest.mark.slow
def test_sources_of_the_reward(launch: Launcher, tmp_path: Path) -> None:  # noqa: F811
    scorer = tmp_path / "scorer"
    scorer.mkdir()
    (scorer / "config.json").write_text(
        '{"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}'
    )
    (scorer / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    entry = "reward.custom_reward_function.reward_kwargs"

    def source(*flags: str) -> tuple[str, dict]:
        found = keys(launch, *flags, "--name", f"s{len(list(launch.output.glob('logs/ppo/*')))}")
        manager = found.get("reward.reward_manager.name", "naive")
        assert (manager == "JudgeRewardManager") is (flags != ())
        kwargs = json.loads(found[f"{entry}.reward_kwargs"].strip('"').replace('\\"', '"') or "{}")
        return found[f"{entry}.reward_path"].strip('"'), kwargs

    assert source() == (str(ROOT / "grpo/reward_func.py"), {})
    path, kwargs = source("--reward_source", "model", "--reward_model_path", str(scorer))
    assert path == str(ROOT / "ppo/model_reward.py")
    assert kwargs["model"] == str(scorer)
    assert kwargs["served"] is False
    path, kwargs = source("--reward_source", "api")
    assert path == str(ROOT / "ppo/api_reward.py")
    assert kwargs["config"] == str(ROOT / "ppo/api_reward_config.yaml")
    weights = ("--reward_weights", "function=1,model=0.5,api=0.25")
    path, kwargs = source("--reward_source", "mix", *weights, "--reward_model_path", str(scorer))
    assert path == str(ROOT / "ppo/mix_reward.py")
    assert [(part["name"], part["weight"]) for part in kwargs["parts"]] == [
        ("function", 1.0),
        ("model", 0.5),
        ("api", 0.25),
    ]


BAD = [
    (["--clip_ratio_c", "1.0"], "CLIP_RATIO_C=1.0 must be above 1"),
    (["--gamma", "1.5"], "GAMMA=1.5 must lie between 0 and 1"),
    (["--ppo_epochs", "0"], "PPO_EPOCHS=0 must be 1 or more"),
    (
        ["--kl_controller", "adaptive", "--kl_mode", "loss"],
        "KL_CONTROLLER=adaptive steers a KL in the reward",
    ),
    (
        ["--critic_warmup", "20"],
        "CRITIC_WARMUP=20 of TOTAL_STEPS=20 steps: the policy would never be updated",
    ),
    (["--critic_max_tokens_per_gpu", "20"], "CRITIC_MAX_TOKENS_PER_GPU=20 (x 1 sequence parallel) is below"),
    (
        ["--use_dynamic_bsz", "false", "--critic_micro_batch_size", "3"],
        "CRITIC_MICRO_BATCH_SIZE=3 does not divide",
    ),
    (["--critic_model_path", "no/such/folder"], "CRITIC_MODEL_PATH=no/such/folder does not exist"),
    (["--reproducible", "true", "--rollout_engine", "sglang"], "REPRODUCIBLE=true seeds each answer"),
    (["--reward_func_path", "no/such.py"], "reward file no/such.py does not exist"),
    (["--reward_source", "model"], "REWARD_MODEL_PATH is empty"),
    (
        ["--reward_source", "model", "--reward_model_path", "smollm2", "--reward_model_config", "no.yaml"],
        "is no file",
    ),
    (["--reward_source", "mix", "--reward_weights", "function=1"], "needs two sources or more"),
    (
        ["--reward_source", "mix", "--reward_weights", "function=1,modle=1"],
        "'modle=1' is not one of function, model",
    ),
    (["--reward_source", "api", "--api_reward_config", "no.yaml"], "API_REWARD_CONFIG=no.yaml is no file"),
    (["--reward_source", "api", "--reward_errors", "zero"], "would count as worthless"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_wrong_values_are_one_line(launch: Launcher, flags: list[str], message: str) -> None:  # noqa: F811
    done = launch("--device", "cpu", "--no-preflight", *flags, method="ppo")
    assert done.code == 2
    assert done.call is None
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0], done.err
    assert "Traceback" not in done.err


def test_sample_data_has_right_answers_and_no_question_twice() -> None:
    from ppo.data.make_data import check

    assert check() == []
