"""Every mistake of the issue's list: one clear line, exit code 2, before Ray starts, nothing left behind."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from common.launcher import checks
from common.launcher.errors import UserError

from .conftest import ROOT, Launch, Launcher


def refused(done: Launch, *parts: str) -> None:
    """One or more ``error:`` lines that hold *parts*, no traceback, no call of verl."""
    assert done.code == 2, (done.code, done.out, done.err)
    assert done.call is None
    assert "Traceback" not in done.err
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert errors, done.err
    for part in parts:
        assert any(part in line for line in errors), (part, errors)


def rows(path: Path, items: list[dict]) -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


FLAGS = [
    (["--rollout_nn", "4"], ["unknown flag --rollout_nn", "did you mean --rollout_n?"]),
    (["--learning-rat", "1"], ["did you mean --learning_rate?"]),
    (["--zzz"], ["unknown flag --zzz"]),
    (["--rollout_n"], ["--rollout_n needs a value"]),
    (["stray"], ["'stray' is neither a --flag nor a key=value"]),
    (["--rollout_n", "many"], ["ROLLOUT_N='many' is not a whole number"]),
    (["--lr", "fast"], ["LEARNING_RATE='fast' is not a number"]),
    (["--use_lora=yes"], ["USE_LORA='yes' must be true or false"]),
    (["--algorithm", "grp"], ["must be one of grpo, dr_grpo", "did you mean grpo?"]),
    (["--model", "/no/such/model"], ["MODEL_PATH=/no/such/model does not exist"]),
    (["--train_data", "/no/such.jsonl"], ["/no/such.jsonl"]),
    (["--train_data", ""], ["TRAIN_DATA is empty"]),
    (["--reward_func_path", "/no/reward.py"], ["/no/reward.py does not exist"]),
    (["--reward_func_name", "nope"], ["has no function 'nope'"]),
    (["--reward_func_name", "common:mth"], ["common:mth"]),
    (["--reward_kwargs", "{oops"], ["REWARD_KWARGS is not JSON"]),
    (["--reward_kwargs", "[1]"], ["REWARD_KWARGS must be a JSON object"]),
    (
        ["--batch_size", "7", "--mini_batch_size", "3"],
        ["MINI_BATCH_SIZE=3 does not divide TRAIN_BATCH_SIZE=7", "use MINI_BATCH_SIZE=1"],
    ),
    (["--mini_batch_size", "16"], ["MINI_BATCH_SIZE=16 is larger than TRAIN_BATCH_SIZE=8"]),
    (["--batch_size", "4096"], ["TRAIN_DATA has 480 rows that fit, fewer than TRAIN_BATCH_SIZE=4096"]),
    (["--batch_size", "0"], ["TRAIN_BATCH_SIZE=0 must be 1 or more"]),
    (
        ["--use_dynamic_bsz", "false", "--micro_batch_size", "7"],
        ["MICRO_BATCH_SIZE=7 does not divide the 64 responses", "use 8"],
    ),
    (["--max_tokens_per_gpu", "10"], ["MAX_TOKENS_PER_GPU=10", "use 80 or more"]),
    (["--rollout_tp_size", "3"], ["ROLLOUT_TP_SIZE=3 does not divide 1 GPUs"]),
    (["--n", "1"], ["ROLLOUT_N=1", "2 or more"]),
    (["--use_lora", "--lora_rank", "1000"], ["LORA_RANK=1000 must be between 1 and 512"]),
    (["--use_lora", "--lora_alpha", "0"], ["LORA_ALPHA=0"]),
    (["--use_lora", "--lora_targets", "all_linear"], ["LORA_TARGETS=all_linear", "did you mean all-linear?"]),
    (["--use_lora", "--lora_targets", "q_proj"], ["must be all-linear or a list: did you mean [q_proj]?"]),
    (["--use_lora", "--lora_targets", "[q_proj,vproj]"], ["has no module vproj; did you mean v_proj?"]),
    (["--use_lora", "--lora_targets", "[foo]"], ["has no module foo; it has down_proj, gate_proj, k_proj"]),
    (["--rollout_tp_size", "0"], ["ROLLOUT_TP_SIZE=0 must be 1 or more"]),
    (["--sequence_parallel_size", "0"], ["SEQUENCE_PARALLEL_SIZE=0 must be 1 or more"]),
    (["--nodes", "0"], ["NNODES=0 must be 1 or more"]),
    (["--epochs", "-1"], ["TOTAL_EPOCHS=-1 must be 1 or more"]),
    (
        ["--profile", "torch", "--profile_steps", "2,x"],
        ["PROFILE_STEPS='2,x' is not one or more whole numbers"],
    ),
    (["--max_prompt_length", "5"], ["TRAIN_DATA has no rows that fit: use a longer MAX_PROMPT_LENGTH"]),
    (["--name", ".."], ["EXPERIMENT_NAME='..' becomes a folder name"]),
    (["--name", "n" * 300], ["becomes a folder name: use up to 200 letters"]),
    (["--gpus", "0"], ["N_GPUS='0'"]),
    (["--gpus", "500"], ["N_GPUS=500", "cores"]),
    (["--device", "gpu"], ["DEVICE=gpu, but nvidia-smi shows no GPU"]),
    (["--name", "a/b"], ["EXPERIMENT_NAME='a/b' becomes a folder name"]),
    (["--resume"], ["there is no grpo run"]),
    (["--resume", "ghost"], ["no grpo run 'ghost'"]),
]


@pytest.mark.parametrize(("flags", "parts"), FLAGS, ids=[" ".join(flags)[:80] for flags, _ in FLAGS])
def test_wrong_flags_and_values(launch: Launcher, flags: list[str], parts: list[str]) -> None:
    refused(launch(*flags, timeout=20), *parts)
    assert not (launch.output / "logs").exists()


def test_all_mistakes_are_said_at_once(launch: Launcher) -> None:
    done = launch("--model", "/nope", "--train_data", "/nope.jsonl", "--reward_func_name", "nope")
    refused(done, "MODEL_PATH=/nope", "/nope.jsonl", "no function 'nope'")


def test_folder_that_is_no_model(launch: Launcher, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    refused(launch("--model", str(tmp_path)), "holds no config.json", "weights.bin")


def test_near_model_folder_is_suggested(launch: Launcher, tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    refused(launch("--model", str(tmp_path / "my-modle")), f"did you mean {tmp_path / 'my-model'}?")


def test_empty_data_file(launch: Launcher, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    refused(launch("--train_data", str(tmp_path / "empty.jsonl")), "empty.jsonl")


def test_wrong_columns_name_what_was_found(launch: Launcher, tmp_path: Path) -> None:
    data = rows(tmp_path / "d.jsonl", [{"foo": 1, "bar": 2}] * 20)
    refused(launch("--train_data", data), "foo")


def test_row_without_answer_names_the_row(launch: Launcher, tmp_path: Path) -> None:
    items = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(20)]
    items[4]["answer"] = ""
    data = rows(tmp_path / "d.jsonl", items)
    refused(launch("--train_data", data, "--batch_size", "2"), "5")
    kept = launch("--train_data", data, "--batch_size", "2", "--bad_rows", "quarantine", "--name", "q")
    assert kept.code == 0, kept.err
    assert "1 rows set aside" in kept.err
    assert launch.run_json("q")["data"]["rejected"] == 1


def test_prompts_over_the_limit_are_counted_aloud(launch: Launcher, tmp_path: Path) -> None:
    items = [{"question": f"{n} + 1?" + " please" * (n % 2 * 200), "answer": str(n + 1)} for n in range(20)]
    data = rows(tmp_path / "d.jsonl", items)
    done = launch("--train_data", data, "--val_data", data, "--name", "long")
    assert (
        "TRAIN_DATA: 10 of 20 prompts are longer than MAX_PROMPT_LENGTH=64 tokens and are left out"
        in done.err
    )
    refused(launch("--train_data", data, "--val_data", data, "--batch_size", "16"), "has 10 rows that fit")


def test_truncated_archive(launch: Launcher, tmp_path: Path) -> None:
    whole = gzip.compress((ROOT / "grpo/data/train.jsonl").read_bytes())
    (tmp_path / "d.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    refused(launch("--train_data", str(tmp_path / "d.jsonl.gz")), "d.jsonl.gz")


def test_reward_file_that_does_not_import(launch: Launcher, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import no_such_module_here\n")
    refused(launch("--reward_func_path", str(bad)), "no_such_module_here")
    bad.write_text("def compute_score(:\n")
    refused(launch("--reward_func_path", str(bad)), "bad.py")


def test_reward_that_cannot_tell_right_from_wrong(launch: Launcher, tmp_path: Path) -> None:
    blind = tmp_path / "blind.py"
    blind.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    return 0.0\n"
    )
    flags = ("--reward_func_path", str(blind))
    refused(launch(*flags), "reward on 64 of the run's own rows", "or use --force")
    forced = launch(*flags, "--force", "--name", "f")
    assert forced.code == 0
    assert "(--force: going on)" in forced.err
    assert launch(*flags, "--no-preflight", "--name", "n").code == 0


def test_folder_that_already_holds_a_run(launch: Launcher) -> None:
    assert launch("--name", "one").code == 0
    before = launch.run_json("one")
    refused(launch("--name", "one"), "already holds a run", "--resume one")
    assert launch.run_json("one") == before


def test_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = type("Usage", (), {"free": 5 * 1024**2})
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"GiB free, one checkpoint needs about .* GiB"):
        checks.check_disk(tmp_path, "hub/id", save=True)


def test_key_value_goes_on_to_verl_as_it_is(launch: Launcher) -> None:
    assert launch.dry_run("no.such.key=1")[-1] == "no.such.key=1"


@pytest.mark.parametrize("flags", [["--nodes", "0"], ["--sequence_parallel_size", "0"], ["--epochs", "0"]])
def test_nothing_below_one_in_sft_either(launch: Launcher, flags: list[str]) -> None:
    refused(launch(*flags, method="sft"), "=0 must be 1 or more")


def test_an_output_folder_that_is_a_file(launch: Launcher, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(launch("--output_dir", str(tmp_path / "file")), "file is a file, no folder")


@pytest.mark.parametrize("text", ["[]", "{}", '{"method": "grpo", "knobs": null}'])
def test_a_damaged_record_is_said_when_it_is_to_be_resumed(launch: Launcher, text: str) -> None:
    folder = launch.output / "logs" / "grpo" / "r"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(text)
    refused(launch("--resume", "r"), "run.json is damaged")


def test_a_resume_keeps_its_adapter_and_needs_a_checkpoint(launch: Launcher) -> None:
    assert launch("--name", "r", FAKE_EXIT="1").code == 1
    root = launch.fake_checkpoint("r", 15)
    refused(launch("--resume", "r", "--use_lora"), "USE_LORA=true, but the run was started with false")
    (root / "global_step_15" / "actor" / "model_world_size_1_rank_0.pt").unlink()
    refused(launch("--resume", "r"), "global_step_15 holds no checkpoint")


def test_mistakes_in_knobs_are_in_the_json_report_too(launch: Launcher) -> None:
    done = launch("--preflight-only", "--json", "--mini_batch_size", "3", "--rollout_tp_size", "3")
    refused(done, "MINI_BATCH_SIZE=3 does not divide", "ROLLOUT_TP_SIZE=3 does not divide")
    report = json.loads(done.out)
    assert report["ok"] is False
    assert [found["severity"] for found in report["findings"]] == ["error", "error"]
    assert report["findings"][0]["text"].startswith("MINI_BATCH_SIZE=3 does not divide TRAIN_BATCH_SIZE=8")
