"""What reaches verl: defaults, environment, flags, key=value, and hostile characters on the way."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT, Launcher, composed


def test_default_run_on_a_machine_without_gpu(launch: Launcher) -> None:
    done = launch("--name", "first", DEVICE="cpu")
    assert done.code == 0, done.err
    keys = done.overrides
    assert done.call["argv"][:2] == ["-m", "verl.trainer.main_ppo"]
    assert keys["trainer.device"] == "cpu"
    assert keys["data.train_batch_size"] == "8"
    assert keys["actor_rollout_ref.actor.ppo_mini_batch_size"] == "8"
    assert keys["actor_rollout_ref.rollout.n"] == "8"
    assert keys["algorithm.adv_estimator"] == "grpo"
    assert "SmolLM2-135M-Instruct" in keys["actor_rollout_ref.model.path"]
    assert keys["trainer.experiment_name"] == '"first"'
    assert done.call["env"]["VERL_PLATFORM"] == "cpu"
    assert done.call["env"]["VERL_FILE_LOGGER_PATH"].endswith("logs/grpo/first/metrics-1.jsonl")
    assert done.call["cwd"] == str(ROOT)
    assert "MODEL_PATH Qwen/Qwen2.5-1.5B-Instruct -> smollm2" in done.err
    assert "hello from the fake verl" in done.out
    console = launch.output / "logs" / "grpo" / "first" / "console-1.log"
    assert "hello from the fake verl" in console.read_text()


def test_the_same_launch_twice_has_the_same_argv(launch: Launcher) -> None:
    first, second = launch.dry_run("--name", "x"), launch.dry_run("--name", "x")
    assert first == second


def test_gpu_machine_gets_the_block_and_no_cpu_keys(launch: Launcher) -> None:
    smi = launch.folder / "nvidia-smi"
    smi.write_text('#!/bin/sh\necho "GPU 0: A (UUID: GPU-1)"\necho "GPU 1: A (UUID: GPU-2)"\n')
    smi.chmod(0o755)
    path = f"{launch.folder}:{os.environ['PATH']}"
    done = launch("--model", "smollm2", "--name", "g", PATH=path)
    assert done.code == 0, done.err
    assert done.overrides["trainer.n_gpus_per_node"] == "2"
    assert done.overrides["data.train_batch_size"] == "64"
    assert done.overrides["actor_rollout_ref.actor.optim.lr"] == "1e-6"
    assert "trainer.device" not in done.overrides
    assert done.call["env"]["VERL_PLATFORM"] is None
    one = launch("--model", "smollm2", PATH=path, CUDA_VISIBLE_DEVICES="1")
    assert one.overrides["trainer.n_gpus_per_node"] == "1"
    many = launch("--model", "smollm2", "--gpus", "4", PATH=path)
    assert many.code == 2
    assert "N_GPUS=4, but this machine shows 2" in many.err


@pytest.mark.slow
def test_precedence_block_environment_flag_override(launch: Launcher) -> None:
    assert launch("--name", "a").overrides["actor_rollout_ref.rollout.n"] == "8"
    assert launch("--name", "b", ROLLOUT_N="4").overrides["actor_rollout_ref.rollout.n"] == "4"
    flag = launch("--name", "c", "--rollout-n", "6", ROLLOUT_N="4")
    assert flag.overrides["actor_rollout_ref.rollout.n"] == "6"
    override = launch("--name", "d", "--N", "6", "actor_rollout_ref.rollout.n=3", ROLLOUT_N="4")
    words = override.call["argv"]
    assert [w for w in words if "rollout.n=" in w] == ["actor_rollout_ref.rollout.n=3"]
    assert words[-1] == "actor_rollout_ref.rollout.n=3"


def test_config_yaml_is_read(launch: Launcher) -> None:
    assert composed(launch.dry_run())["data"]["filter_overlong_prompts"] is True
    off = composed(launch.dry_run("data.filter_overlong_prompts=false"))
    assert off["data"]["filter_overlong_prompts"] is False


@pytest.mark.parametrize("flag", ["--use_lora", "--use-lora", "--USE_LORA=true", "--Use_Lora=true", "--lora"])
def test_spellings_of_one_flag(launch: Launcher, flag: str) -> None:
    assert launch("--name", "l", flag).overrides["actor_rollout_ref.model.lora_rank"] == "32"


def test_boolean_flag_does_not_swallow_what_follows(launch: Launcher) -> None:
    done = launch("--use_lora", "trainer.balance_batch=False", "--name", "b")
    assert done.overrides["trainer.balance_batch"] == "False"
    assert done.overrides["actor_rollout_ref.model.lora_rank"] == "32"
    assert launch("--use_lora", "false", "--name", "c").overrides["actor_rollout_ref.model.lora_rank"] == "0"


HOSTILE = [
    "with space",
    "quote'single",
    'quote"double',
    "dollar$HOME",
    "brace${HOME}",
    "中文 unicode",
    "a=b,c",
    "back\\slash",
    "end\\",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folder_names_arrive_unchanged(launch: Launcher, tmp_path: Path, name: str) -> None:
    launch.output = tmp_path / name
    words = launch.dry_run("--name", "h")
    config = composed(words)
    assert config.trainer.default_local_dir == str(launch.output / "checkpoints" / "grpo" / "h")
    assert config.trainer.rollout_data_dir == str(launch.output / "logs" / "grpo" / "h" / "rollouts")


@pytest.mark.parametrize("name", ["my data 'x'.jsonl", 'a "b" $c.jsonl', "数据.jsonl"])
def test_hostile_data_and_reward_paths(launch: Launcher, tmp_path: Path, name: str) -> None:
    data = tmp_path / name
    shutil.copy(ROOT / "grpo" / "data" / "train.jsonl", data)
    reward = data.with_suffix(".py")
    shutil.copy(ROOT / "grpo" / "reward_func.py", reward)
    words = launch.dry_run("--train_data", str(data), "--reward_func_path", str(reward))
    config = composed(words)
    assert config.reward.custom_reward_function.reward_kwargs.reward_path == str(reward)
    assert Path(config.data.train_files).is_file()


def test_reward_kwargs_arrive_as_written(launch: Launcher) -> None:
    text = '{"label": "it\'s {a: b}, \\"q\\" ${x}"}'
    reward = launch.folder / "r.py"
    reward.write_text(
        "def f(data_source, solution_str, ground_truth, extra_info=None, label=''):\n    return 0.0\n"
    )
    words = launch.dry_run(
        "--reward_func_path", str(reward), "--reward_func_name", "f", "--reward_kwargs", text, "--force"
    )
    config = composed(words)
    assert config.reward.custom_reward_function.reward_kwargs.reward_kwargs == text


def test_relative_paths_mean_what_the_user_sees(launch: Launcher, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text((ROOT / "grpo/data/train.jsonl").read_text())
    command = [
        "bash",
        str(ROOT / "grpo/train.sh"),
        "--train_data",
        "mine.jsonl",
        "--output_dir",
        "here",
        "--name",
        "r",
    ]
    done = subprocess.run(
        command, env=launch.environment(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "logs" / "grpo" / "r" / "run.json").is_file()


def test_printed_command_does_what_the_launch_does(launch: Launcher) -> None:
    launch.output = launch.output / "it's a $dir"
    printed = launch("--dry-run", "--name", "p", "--n", "4")
    assert printed.call is None
    assert not (launch.output / "logs").exists()
    fake = launch.environment()
    subprocess.run(["bash", "-c", printed.out], env=fake, check=True, capture_output=True)
    pasted = (launch.folder / "record.json").read_text()
    assert launch("--name", "p", "--n", "4").code == 0
    launched = (launch.folder / "record.json").read_text()
    assert shlex.split(printed.out)[0] == "cd"
    a, b = json.loads(pasted), json.loads(launched)
    assert a["argv"] == b["argv"]
    assert {k: v for k, v in a["env"].items() if k != "VERL_TRAINING_RUN"} == {
        k: v for k, v in b["env"].items() if k != "VERL_TRAINING_RUN"
    }


def test_sourcing_the_libraries_does_nothing() -> None:
    script = (
        "before=$(compgen -v | sort; shopt; set -o; pwd); "
        f"source {shlex.quote(str(ROOT / 'common/launch.sh'))}; source {shlex.quote(str(ROOT / 'common/rl.sh'))}; "
        f"source {shlex.quote(str(ROOT / 'grpo/algorithms.sh'))}; "
        "after=$(compgen -v | sort; shopt; set -o; pwd); "
        "diff <(grep -vxE 'before|PIPESTATUS' <<<\"$before\") <(grep -vxE 'before|PIPESTATUS' <<<\"$after\")"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_help_lists_every_knob_with_default_and_meaning(launch: Launcher) -> None:
    from common.launcher.block import read_block

    done = launch("--help")
    assert done.code == 0
    for knob in read_block(ROOT / "grpo" / "train.sh"):
        line = next(
            line for line in done.out.splitlines() if line.strip().startswith(f"--{knob.name.lower()} ")
        )
        assert knob.help, knob.name
        assert knob.help in line
        assert line.endswith(f"[{knob.default}]")


def test_smoke_caps_values_and_says_so(launch: Launcher) -> None:
    done = launch("--smoke", "--name", "s")
    assert done.overrides["trainer.total_training_steps"] == "2"
    assert done.overrides["data.train_batch_size"] == "4"
    assert "--smoke: TRAIN_BATCH_SIZE 8 -> 4" in done.err
    kept = launch("--smoke", "--name", "s2", "--steps", "3")
    assert kept.overrides["trainer.total_training_steps"] == "3"


def test_wandb_is_decided_before_launch(launch: Launcher, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    cache = {"XDG_CACHE_HOME": str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"))}
    offline = launch("--use_wandb", "--name", "w1", HOME=str(home), **cache)
    assert offline.code == 0, offline.err
    assert offline.call["env"]["WANDB_MODE"] == "offline"
    assert "there is no login" in offline.err
    assert offline.overrides["trainer.logger"] == "[console,file,wandb]"
    online = launch("--use_wandb", "--name", "w2", HOME=str(home), WANDB_API_KEY="secret-key-123", **cache)
    assert online.call["env"]["WANDB_MODE"] == "online"
    everything = online.out + online.err + str(online.call) + str(launch.run_json("w2"))
    assert "secret-key-123" not in everything
    off = launch("--name", "w3", HOME=str(home), **cache)
    assert off.call["env"]["WANDB_MODE"] is None


@pytest.mark.parametrize("script", ["grpo/train.sh", "dpo/train.sh", "test.sh", "tests/run.sh"])
def test_started_by_its_bare_name_from_its_own_folder(script: str) -> None:
    path = ROOT / script
    done = subprocess.run(
        ["bash", path.name, "--help"], cwd=path.parent, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 3


def test_a_reward_that_prints_disturbs_nothing(launch: Launcher, tmp_path: Path) -> None:
    source = (ROOT / "grpo/reward_func.py").read_text()
    chatty = source + "\nprint('EVIL=1', flush=True)\nimport os\nos.write(1, b'MODEL_DIR=/nowhere\\0')\n"
    (tmp_path / "chatty.py").write_text(chatty)
    done = launch("--reward_func_path", str(tmp_path / "chatty.py"), "--name", "c")
    assert done.code == 0, done.err
    assert "EVIL=1" in done.err
    assert done.overrides["actor_rollout_ref.model.path"] != '"/nowhere"'


def test_steps_beyond_the_epochs_get_the_epochs_they_need(launch: Launcher) -> None:
    """verl's RL trainer ends with the last epoch too, and then saves and validates nothing (480 rows, 8 a step)."""
    assert launch("--name", "a", "--steps", "200", "--epochs", "1").overrides["trainer.total_epochs"] == "4"
    assert launch("--name", "b", "--steps", "10", "--epochs", "1").overrides["trainer.total_epochs"] == "1"


def test_several_steps_can_be_profiled(launch: Launcher) -> None:
    done = launch("--name", "p", "--profile", "torch", "--profile_steps", "2,3")
    assert done.overrides["global_profiler.steps"] == "[2,3]", done.err


def test_a_users_plain_word_for_a_key_that_we_add_is_taken(launch: Launcher) -> None:
    key = "actor_rollout_ref.model.override_config.attn_implementation"
    done = launch("--name", "k", f"{key}=eager", "trainer.balance_batch=False")
    words = done.call["argv"]
    assert [word for word in words if key in word] == [f"++{key}=eager"]
    assert "trainer.balance_batch=False" in words
    assert composed(words).actor_rollout_ref.model.override_config.attn_implementation == "eager"
