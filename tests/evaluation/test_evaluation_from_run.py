"""What is taken over from the run that trained a model: sampling, template arguments, precision, reward."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from common.evaluation.setup import choose_sampling, template_kwargs
from common.launcher.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [
    "python",
    "-m",
    "verl.trainer.main_ppo",
    "--config-path",
    str(ROOT / "grpo"),
    "--config-name",
    "config",
    "actor_rollout_ref.rollout.temperature=0.9",
    "+actor_rollout_ref.rollout.top_k=40",
    "data.max_response_length=16",
    "+data.apply_chat_template_kwargs.enable_thinking=False",
]


def options(sampling: str, **given: float) -> Namespace:
    values = {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 512}
    return Namespace(**{**values, **given}, seed=0, sampling=sampling, given=set(given), model_path="m")


def test_sampling_of_the_run() -> None:
    record = {"command": COMMAND}
    train = choose_sampling(options("train"), record)
    assert (train.temperature, train.top_k, train.top_p, train.max_new_tokens) == (0.9, 40, 1.0, 16)
    # grpo/config.yaml validates greedily.
    val = choose_sampling(options("val", max_new_tokens=99), record)
    assert (val.temperature, val.top_k, val.max_new_tokens) == (0.0, 0, 99)
    sampled = [*COMMAND, "actor_rollout_ref.rollout.val_kwargs.do_sample=True"]
    sampled.append("actor_rollout_ref.rollout.val_kwargs.temperature=0.6")
    assert choose_sampling(options("val"), {"command": sampled}).temperature == 0.6
    assert choose_sampling(options("custom"), record).temperature == 0.7


def test_sampling_of_no_run_or_with_a_flag_against_it_is_refused() -> None:
    with pytest.raises(UserError, match="--sampling train: m is no run"):
        choose_sampling(options("train"), {})
    with pytest.raises(UserError, match="takes the run's values: leave --temperature out"):
        choose_sampling(options("train", temperature=0.1), {"command": COMMAND})


def test_template_arguments_of_the_run() -> None:
    assert template_kwargs({"command": COMMAND}) == {"enable_thinking": False}
    assert template_kwargs({"knobs": {"ENABLE_THINKING": "true"}}) == {"enable_thinking": True}
    assert template_kwargs({"knobs": {"ENABLE_THINKING": "auto"}}) == {}
