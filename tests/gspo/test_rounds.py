"""Self-play rounds: what verl is given in each, and that a killed run goes on in its round."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from launcher.conftest import ROOT, Launch, Launcher

from common.launcher import hydra_words, rounds, summary

# Stands for verl: logs a line per step, saves checkpoints as the run asks, and may be killed after a step.
VERL = """
import json, os, signal
from pathlib import Path
record = json.loads(Path(os.environ["FAKE_RECORD"]).read_text())
words = record["argv"][record["argv"].index("--config-name") + 2:]
keys = {word.split("=", 1)[0].lstrip("+"): word.split("=", 1)[1].strip('"') for word in words}
with open(os.environ["FAKE_CALLS"], "a") as calls:
    calls.write(json.dumps({**keys, "metrics": Path(record["env"]["VERL_FILE_LOGGER_PATH"]).name}) + "\\n")
if keys.get("trainer.val_only") == "True":
    folder = Path(keys["reward.custom_reward_function.reward_kwargs.parts_dir"])
    with open(folder / "reward_parts-host-1.jsonl", "w") as parts:
        for row in range(480):
            parts.write(json.dumps({"index": row, "parts": {"score": row / 480}}) + "\\n")
    raise SystemExit(0)
root, every = Path(keys["trainer.default_local_dir"]), int(keys["trainer.save_freq"])
tracker, end = root / "latest_checkpointed_iteration.txt", int(keys["trainer.total_training_steps"])
begin = int(tracker.read_text()) if keys["trainer.resume_mode"] == "auto" else 0
with open(record["env"]["VERL_FILE_LOGGER_PATH"], "w") as log:
    for step in range(begin + 1, end + 1):
        print(json.dumps({"step": step, "data": {"critic/score/mean": step / 10}}), file=log, flush=True)
        if step % every == 0 or step == end:
            model = root / f"global_step_{step}" / "actor" / "huggingface"
            model.mkdir(parents=True)
            (model.parent / "model_world_size_1_rank_0.pt").touch()
            (model / "config.json").write_text('{"dtype": "float32"}')
            (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # no tensors
            tracker.write_text(str(step))
        if str(step) == os.environ.get("FAKE_KILLED_AFTER"):
            os.kill(os.getppid(), signal.SIGKILL)
            raise SystemExit(0)
"""
FLAGS = ("--device", "cpu", "--no-preflight")


def play(launch: Launcher, *flags: str, **env: str) -> tuple[Launch, list[dict]]:
    """A launch and what its calls of verl were given."""
    calls = launch.folder / "calls.jsonl"
    calls.unlink(missing_ok=True)
    done = launch(*FLAGS, *flags, method="gspo", FAKE_SCRIPT=VERL, FAKE_CALLS=str(calls), **env)
    return done, [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


def stitched(launch: Launcher, name: str) -> list[int]:
    """The run's steps as the summary reads them, over all attempts."""
    folder = launch.output / "logs" / "gspo" / name
    return [step for step, _ in summary.read_metrics(folder, launch.run_json(name, "gspo"))]


def kept(launch: Launcher, name: str) -> list[int]:
    root = launch.output / "checkpoints" / "gspo" / name
    return sorted(int(path.name.rpartition("_")[2]) for path in root.glob("global_step_*"))


@pytest.mark.slow
def test_three_rounds_make_one_run(launch: Launcher) -> None:
    done, calls = play(launch, "--name", "r", "--steps", "4", "--save_freq", "2", "--keep_checkpoints", "2")
    assert done.code == 0, done.err
    assert [call["trainer.total_training_steps"] for call in calls] == ["4", "8", "12"]
    assert [call["trainer.resume_mode"] for call in calls] == ["disable", "auto", "auto"]
    root = launch.output / "checkpoints" / "gspo" / "r"
    models = [call["actor_rollout_ref.model.path"] for call in calls]
    assert "SmolLM2" in models[0]
    assert models[1:] == [str(root / f"global_step_{step}" / "actor" / "huggingface") for step in (4, 8)]
    # Weights of the round before, but neither its optimizer nor its second validation.
    load = [call.get("actor_rollout_ref.actor.checkpoint.load_contents") for call in calls]
    assert load == [None, "[model]", "[model]"]
    assert [call.get("trainer.val_before_train") for call in calls] == [None, "False", "False"]
    assert [call["trainer.experiment_name"] for call in calls] == ["r", "r-round2", "r-round3"]
    assert [call["metrics"] for call in calls] == ["metrics-1.jsonl", "metrics-2.jsonl", "metrics-3.jsonl"]
    assert stitched(launch, "r") == list(range(1, 13))
    assert kept(launch, "r") == [10, 12]
    record = launch.run_json("r", "gspo")
    assert (record["state"], record["total_steps"], record["steps_per_round"]) == ("finished", 12, 4)
    assert [(a["round"], a["exit_code"], a["resumed_from_step"]) for a in record["attempts"]] == [
        (1, 0, None),
        (2, 0, 4),
        (3, 0, 8),
    ]
    assert {a["console"] for a in record["attempts"]} == {"console-1.log"}
    assert "gspo/r: finished at step 12 of 12" in done.err


@pytest.mark.slow
def test_killed_in_round_two_it_goes_on_in_round_two(launch: Launcher) -> None:
    flags = ("--name", "k", "--steps", "4", "--save_freq", "2", "--keep_checkpoints", "1")
    done, calls = play(launch, *flags, FAKE_KILLED_AFTER="7")
    assert (done.code, len(calls)) == (128 + 9, 2)
    assert launch.run_json("k", "gspo")["state"] == "failed"
    assert kept(launch, "k") == [4, 6]
    resumed, calls = play(launch, "--resume", "k")
    assert resumed.code == 0, resumed.err
    assert "resuming gspo/k from step 6 of 12" in resumed.err
    second, third = calls
    # The same reference as before the kill, and everything from the checkpoint, the optimizer too.
    assert second["actor_rollout_ref.model.path"].endswith("global_step_4/actor/huggingface")
    assert "actor_rollout_ref.actor.checkpoint.load_contents" not in second
    assert (second["trainer.resume_mode"], second["trainer.total_training_steps"]) == ("auto", "8")
    assert third["actor_rollout_ref.model.path"].endswith("global_step_8/actor/huggingface")
    assert stitched(launch, "k") == list(range(1, 13))
    assert [a["round"] for a in launch.run_json("k", "gspo")["attempts"]] == [1, 2, 2, 3]
    assert kept(launch, "k") == [12]


@pytest.mark.slow
def test_killed_before_a_rounds_first_checkpoint_it_starts_that_round_again(launch: Launcher) -> None:
    done, _ = play(launch, "--name", "b", "--steps", "4", "--save_freq", "4", FAKE_KILLED_AFTER="5")
    assert done.code == 128 + 9
    _, calls = play(launch, "--resume", "b")
    assert calls[0]["actor_rollout_ref.actor.checkpoint.load_contents"] == "[model]"
    assert [call["trainer.total_training_steps"] for call in calls] == ["8", "12"]


def test_lora_goes_on_from_the_merged_model_with_a_new_adapter() -> None:
    command = ["p", "--config-name", "config", "actor_rollout_ref.model.lora_rank=8", "trainer.test_freq=-1"]
    plan = rounds.Plan(Path("/run"), Path("/checkpoints"), 3, 4, 1, "group", command)
    keys = rounds.round_overrides(plan, 2, 4, "/merged")
    assert keys["actor_rollout_ref.model.path"] == '"/merged"'
    assert keys["actor_rollout_ref.actor.checkpoint.load_contents"] == "[]"
    # Without a validation at the end of the round before, this one begins with one.
    assert "trainer.val_before_train" not in keys
    tested = [*command[:-1], "trainer.test_freq=2"]
    for more, expected in (([], "False"), (["trainer.val_before_train=True"], None)):
        plan = rounds.Plan(Path("/run"), Path("/checkpoints"), 3, 4, 1, "group", [*tested, *more])
        assert rounds.round_overrides(plan, 2, 4, "/merged").get("trainer.val_before_train") == expected


@pytest.mark.slow
@pytest.mark.parametrize("opponent", ["previous", "both"])
def test_each_round_first_asks_the_policy_it_starts_from(launch: Launcher, opponent: str) -> None:
    flags = (
        "--name",
        "o",
        "--steps",
        "2",
        "--self_play_rounds",
        "2",
        "--opponent",
        opponent,
        "--temperature",
        "0.7",
    )
    done, calls = play(launch, *flags)
    assert done.code == 0, done.err
    assert [call.get("trainer.val_only") for call in calls] == ["True", None, "True", None]
    ask, train = calls[2:]
    assert ask["actor_rollout_ref.model.path"] == train["actor_rollout_ref.model.path"]
    assert ask["data.val_files"] == train["data.train_files"]
    assert ask["actor_rollout_ref.rollout.val_kwargs.temperature"] == "0.7"
    assert ask["actor_rollout_ref.rollout.val_kwargs.do_sample"] == "True"
    scores = launch.output / "logs/gspo/o/opponents/round-2.json"
    assert train["algorithm.preference.previous_scores"] == str(scores)
    assert train["algorithm.preference.opponent"] == opponent
    assert json.loads(scores.read_text())["240"] == 0.5
    assert [a["metrics"] for a in launch.run_json("o", "gspo")["attempts"]] == [
        "metrics-1.jsonl",
        "metrics-2.jsonl",
    ]


@pytest.mark.slow
def test_the_previous_policy_is_asked_once_per_round_even_if_killed(launch: Launcher) -> None:
    flags = (
        "--name",
        "p",
        "--steps",
        "2",
        "--save_freq",
        "1",
        "--opponent",
        "both",
        "--self_play_rounds",
        "1",
    )
    done, _ = play(launch, *flags, "--advantage", "preference", FAKE_KILLED_AFTER="1")
    assert done.code == 128 + 9
    _, calls = play(launch, "--resume", "p")
    assert [call.get("trainer.val_only") for call in calls] == [None]


def test_one_round_is_plain_gspo_without_a_runner(launch: Launcher) -> None:
    words = launch.dry_run(*FLAGS, "--name", "x", "--self_play_rounds", "1", method="gspo")
    assert words[1:3] == ["-m", "verl.trainer.main_ppo"]
    assert "algorithm.adv_estimator=grpo" in words
    assert "algorithm.norm_adv_by_std_in_grpo=True" in words
    assert "actor_rollout_ref.actor.use_kl_loss=False" in words


@pytest.mark.slow
def test_a_round_that_ends_early_is_an_error(launch: Launcher) -> None:
    early = VERL.replace('int(keys["trainer.total_training_steps"])', "2")
    done = launch(
        *FLAGS, "--name", "e", "--steps", "4", method="gspo", FAKE_SCRIPT=early, FAKE_CALLS="/dev/null"
    )
    assert done.code == 2
    assert "round 1: verl ended without an error at step 2, the round ends at 4" in done.out + done.err
    assert launch.run_json("e", "gspo")["state"] == "failed"


@pytest.mark.slow
def test_more_rounds_may_follow_but_not_longer_ones(launch: Launcher) -> None:
    play(launch, "--name", "m", "--steps", "2", "--self_play_rounds", "2")
    again, _ = play(launch, "--resume", "m")
    assert "run m is already at step 4 of 4: raise SELF_PLAY_ROUNDS to go on" in again.err
    longer, _ = play(launch, "--resume", "m", "--self_play_rounds", "3", "--steps", "5")
    assert "this run's rounds have 2 steps, with these settings they would have 5" in longer.err
    done, calls = play(launch, "--resume", "m", "--self_play_rounds", "3")
    assert done.code == 0, done.err
    assert [call["trainer.total_training_steps"] for call in calls] == ["6"]


def test_values_are_quoted_as_the_launcher_quotes_them() -> None:
    hostile = [
        "plain",
        "",
        "/a b/c",
        'say "hi"',
        "back\\slash",
        'ends\\"',
        "ends\\\\",
        "${x}",
        "\\${x}",
        'a\\"b\\',
        "é,=[]{}'",
    ]
    script = f'source {ROOT / "common/launch.sh"}; for value in "$@"; do launch::quote "$value"; printf \'\\0\'; done'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *hostile], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\0")[:-1] == [hydra_words.quote(value) for value in hostile]


def test_overrides_replace_and_are_read_by_key() -> None:
    command = ["python", "--config-name", "config", "a.b=1", "+c=2", "d=3", "a.b=4"]
    assert hydra_words.value_of(command, "a.b") == "4"
    assert hydra_words.replaced(command, {"+c": "5", "a.b": "6"}) == [
        *("python", "--config-name", "config"),
        *("d=3", "+c=5", "a.b=6"),
    ]
