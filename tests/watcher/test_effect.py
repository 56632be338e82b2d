"""What verl prints of its config against what the launcher passed."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from pprint import pprint

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from common.launcher.effect import check, knobs_of, mismatches, printed_config

CONFIG = {
    "actor_rollout_ref": {
        "actor": {"optim": {"lr": 1e-06}, "clip": [0.2, 0.28], "path": "${..model}", "name": None},
        "model": '/models/it\'s "mine"',
        "long": "word " * 40,
        "limit": float("inf"),
        "{odd}": {"a": -1, "b": True},
    },
    "data": {"files": ["a b.parquet", "c"], "seed": 1, "template": "{% if x %}{{ '{' }}"},
    "trainer": {"logger": ["console", "file"], "total_training_steps": None, "extra": {"seen": 2}},
}
SOURCE = "\x1b[36m(TaskRunnerV1 pid=77)\x1b[0m "


def as_rl(config: DictConfig) -> list[str]:
    """main_ppo.py: pprint(OmegaConf.to_container(config, resolve=True)) in a Ray actor."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        pprint(OmegaConf.to_container(config, resolve=True))
    return out.getvalue().splitlines()


def as_log(lines: list[str]) -> str:
    return "".join(f"{SOURCE}{line}\n" for line in lines)


def test_rl_prints_it_line_by_line_among_other_processes() -> None:
    lines = as_rl(OmegaConf.create(CONFIG))
    assert len(lines) > 15
    noise = "\x1b[36m(WorkerDict pid=78)\x1b[0m  'not': 'ours',\n(TaskRunnerV1 pid=77) INFO: a warning\n"
    text = (
        "starting\n" + as_log(lines[:9]) + noise + as_log(lines[9:]) + as_log(["'after': 1", "step:1 - a:1"])
    )
    found = printed_config(text)
    assert found is not None
    assert found["actor_rollout_ref"]["actor"]["path"] == CONFIG["actor_rollout_ref"]["model"]
    assert found["data"] == CONFIG["data"]
    assert found["actor_rollout_ref"]["limit"] == float("inf")


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 400), max_size=12))
def test_ray_may_break_the_print_between_any_two_words(breaks: set[int]) -> None:
    plain = OmegaConf.create({**CONFIG, "data": {"files": ["a", "b"]}})  # no bracket inside a string
    words = re.split(r"(?<=[,:{\[])(?= )", "\n".join(as_rl(plain)))
    text = "".join(word + ("\n" if at in breaks else "") for at, word in enumerate(words))
    found = printed_config(as_log(text.split("\n")))
    assert found is not None
    assert found["trainer"] == CONFIG["trainer"]


def test_sft_prints_it_on_one_line_with_its_interpolations() -> None:
    config = OmegaConf.create({"model": {"path": "/m"}, "optim": {"lr": 1e-4, "of": "${model.path}"}})
    found = printed_config(f"Total steps: 3\n{config}\nEpoch 1/3: 0%\n")
    assert found is not None
    assert mismatches(["optim.of=/m", "optim.lr=0.0001"], found) == []


def test_half_a_print_is_none_yet() -> None:
    lines = as_rl(OmegaConf.create(CONFIG))
    assert printed_config(as_log(lines[:-1])) is None
    assert printed_config("nothing here\n{'other': 1}\n") is None


def test_the_newest_print_counts() -> None:
    first, second = ({"model": {"path": name}} for name in ("a", "b"))
    assert printed_config(f"{OmegaConf.create(first)}\n{OmegaConf.create(second)}\n") == second


@pytest.mark.parametrize(
    "word",
    [
        "actor_rollout_ref.actor.optim.lr=1e-6",
        "actor_rollout_ref.actor.optim.lr=0.000001",
        "actor_rollout_ref.actor.clip=[0.2,0.28]",
        'actor_rollout_ref.model="/models/it\'s \\"mine\\""',
        'data.files=["a b.parquet",c]',
        "data.template=\"{% if x %}{{ '{' }}\"",
        "++data.seed=1",
        "trainer.total_training_steps=null",
        "~trainer.gone",
        "+trainer.extra={seen: 2}",
        "trainer.logger=[console,file]",
        "+actor_rollout_ref.actor.name=null",
        "hydra.run.dir=/tmp/x",
        "trainer=other",
        "model/kind@actor_rollout_ref.kind=small",
    ],
)
def test_what_arrived_is_no_mismatch(word: str) -> None:
    config = OmegaConf.to_container(OmegaConf.create(CONFIG), resolve=True)
    assert mismatches([word], config) == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.seed=2", "data.seed did not arrive: wanted 2, verl trains with 1"),
        ("data.seed=True", "data.seed did not arrive: wanted True, verl trains with 1"),
        ("trainer.logger=[console]", "wanted ['console'], verl trains with ['console', 'file']"),
        ("+trainer.extra={seen: 3}", "wanted {'seen': 3}, verl trains with {'seen': 2}"),
        ("+trainer.new=1", "wanted 1, verl trains with nothing (no such key)"),
        ("~data.seed", "wanted nothing (no such key), verl trains with 1"),
        ("data.files=[c,d]", "wanted ['c', 'd']"),
    ],
)
def test_what_did_not_arrive_is_named(word: str, said: str) -> None:
    config = OmegaConf.to_container(OmegaConf.create(CONFIG), resolve=True)
    (found,) = mismatches(["python", "--config-name", "config", word], config)
    assert said in str(found)


@pytest.mark.parametrize(
    ("word", "got", "said"),
    [
        ("data.n=${model.path}", "m", ""),
        ("data.n=${model.path}", "x", "data.n did not arrive: wanted 'm', verl trains with 'x'"),
        ("data.n=${.m}", "of data", ""),
        ("data.n=${.m}", "x", "wanted 'of data', verl trains with 'x'"),
        ('data.n="a ${model.path}"', "a m", ""),
        ("data.n=[1,${model.path}]", [1, "m"], ""),
        ("data.n=[1,${model.path}]", [1, "x"], "wanted [1, 'm'], verl trains with [1, 'x']"),
        # Nothing to compare: no such key, what only the other process knows, and a literal in a resolved print.
        ("data.n=${gone.too}", "x", ""),
        ("data.n=${oc.env:HOME}", "x", ""),
        ('data.n="a \\${b}"', "a ${b}", ""),
        ("data.n=1,2", 1, ""),
    ],
)
def test_overrides_that_refer_to_other_keys(word: str, got: object, said: str) -> None:
    found = mismatches([word], {"model": {"path": "m"}, "data": {"n": got, "m": "of data"}})
    assert len(found) == bool(said)
    assert not said or said in str(found[0])


def test_of_two_overrides_the_later_counts() -> None:
    assert mismatches(["data.seed=2", "data.seed=1"], {"data": {"seed": 1}}) == []


@pytest.mark.parametrize(
    ("method", "key", "knob"),
    [
        ("grpo", "actor_rollout_ref.actor.optim.lr", "LEARNING_RATE"),
        ("grpo", "actor_rollout_ref.rollout.n", "ROLLOUT_N"),
        ("grpo", "reward.custom_reward_function.reward_kwargs.error_policy", "REWARD_ERRORS"),
        ("ppo", "critic.optim.lr", "CRITIC_LEARNING_RATE"),
        ("gspo", "actor_rollout_ref.actor.clip_ratio_high", "CLIP_RATIO_HIGH"),
        ("sft", "optim.weight_decay", "WEIGHT_DECAY"),
        ("dpo", "dpo.beta", "BETA"),
    ],
)
def test_the_knob_behind_a_key_is_read_from_the_launchers(method: str, key: str, knob: str) -> None:
    from common.launcher.block import read_block

    root = Path(__file__).resolve().parents[2]
    knobs = [entry.name for entry in read_block(root / method / "train.sh")]
    assert knobs_of(method, knobs)[key] == knob


def test_of_a_run_folder_with_the_knobs_name(tmp_path: Path) -> None:
    record = {
        "method": "sft",
        "knobs": {"LEARNING_RATE": "1e-4"},
        "command": ["python", "--config-path", "p", "--config-name", "config", "optim.lr=1e-4"],
        "attempts": [{"n": 1, "console": "console-1.log"}],
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert check(tmp_path) is None
    (tmp_path / "console-1.log").write_text("{'model': {'path': 'x'}, 'optim': {'lr': 0.001}}\n")
    (found,) = check(tmp_path) or []
    assert str(found) == "LEARNING_RATE (optim.lr) did not arrive: wanted 0.0001, verl trains with 0.001"


def test_a_key_of_the_users_is_not_blamed_on_a_knob(tmp_path: Path) -> None:
    record = {
        "method": "sft",
        "knobs": {"LEARNING_RATE": "1e-4"},
        "extra": ["optim.lr=0.5"],
        "command": ["python", "--config-name", "config", "optim.lr=0.5"],
        "attempts": [{"n": 1, "console": "console-1.log"}],
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "console-1.log").write_text("{'model': {'path': 'x'}, 'optim': {'lr': 0.001}}\n")
    assert [str(one) for one in check(tmp_path) or []] == [
        "optim.lr did not arrive: wanted 0.5, verl trains with 0.001"
    ]


def test_a_self_play_round_is_compared_with_its_own_command(tmp_path: Path) -> None:
    rounds = ["python", "-m", "common.launcher.rounds", "--config-name", "config", "optim.lr=1e-4"]
    record = {
        "method": "gspo",
        "knobs": {},
        "command": rounds,
        "attempts": [{"n": 1, "console": "console-1.log"}],
    }
    (tmp_path / "console-1.log").write_text("{'model': {'path': 'x'}, 'optim': {'lr': 0.001}}\n")
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert check(tmp_path) is None  # what is asked before the first round prints a config of its own
    record["attempts"][0]["command"] = ["python", "--config-name", "config", "optim.lr=0.001"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert check(tmp_path) == []
