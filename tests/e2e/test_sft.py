"""SFT end to end on a CPU: a run that learns, and tiny runs that must agree with each other to rounding."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_model import tiny_model

from .conftest import ROOT, Run, Trainer, wait_for_step

sys.path.insert(0, str(ROOT / "sft/data"))
from make_data import read
from score import exact_answers, held_out_loss

pytestmark = pytest.mark.e2e
STEPS = 15


@pytest.fixture(scope="module")
def default_run(sft_default: Run) -> Run:
    return sft_default


def test_held_out_loss_falls(default_run: Run) -> None:
    losses = {step: values["train/loss"] for step, values in default_run.metrics.items()}
    assert sorted(losses) == list(range(1, STEPS + 1))
    held_out = {
        step: values["val/loss"] for step, values in default_run.metrics.items() if "val/loss" in values
    }
    assert sorted(held_out) == [5, 10, 15]
    assert held_out[15] < held_out[5] < losses[1]
    assert f"sft/default: finished at step {STEPS} of {STEPS}" in default_run.log
    assert "validate val/loss" in default_run.log


def test_checkpoint_loads_in_transformers_and_answers_held_out_orders(default_run: Run) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = default_run.checkpoints / f"global_step_{STEPS}" / "huggingface"
    assert f"model    {folder}" in default_run.log
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = read("val")
    assert abs(held_out_loss(model, tokenizer, rows) - default_run.metrics[STEPS]["val/loss"]) <= 0.01
    assert exact_answers(model, tokenizer, rows[:16]) >= 10


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a run of seconds: 16 rows, so an epoch of 2 steps, and a constant learning rate."""
    folder = tmp_path_factory.mktemp("tiny")
    rows = (ROOT / "sft/data/val.jsonl").read_text().splitlines()[:16]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    data, model = str(folder / "rows.jsonl"), str(tiny_model(folder / "model"))
    flags = ["--model", model, "--train_data", data, "--val_data", data, "--cpu_dtype", "float32"]
    return [*flags, "--steps", "5", "--batch_size", "8", "--lr", "1e-3", "--test_freq", "0"]


@pytest.fixture(scope="module")
def one_process(train: Trainer, tiny: list[str]) -> Run:
    return train("sft", "one", *tiny).check()


def wait_for_checkpoint(run: Run, process: subprocess.Popen) -> None:
    """Until the run has a checkpoint to go on from."""
    while not (run.checkpoints / "latest_checkpointed_iteration.txt").is_file():
        assert process.poll() is None, "the run ended early"
        time.sleep(0.1)


def assert_same(run: Run, reference: Run, steps: range = range(1, 6)) -> None:
    for step in steps:
        for key in ("train/loss", "train/grad_norm"):
            found, expected = run.metrics[step][key], reference.metrics[step][key]
            assert abs(found - expected) <= 1e-5 * max(1.0, abs(expected)), (step, key, found, expected)
    assert abs(run.metrics[5]["val/loss"] - reference.metrics[5]["val/loss"]) <= 1e-5


def test_packed_equals_padded_in_upstreams_own_arithmetic(
    train: Trainer, tiny: list[str], one_process: Run
) -> None:
    plain = ("model.use_fused_kernels=False", "model.external_lib=null")
    padded = train("sft", "padded", *tiny, "--packing", "false", *plain).check()
    assert_same(padded, one_process)


@pytest.mark.parametrize("sequence_parallel", ["1", "2"])
def test_two_processes_have_the_losses_of_one(
    train: Trainer, tiny: list[str], one_process: Run, sequence_parallel: str
) -> None:
    flags = ("--gpus", "2", "--sequence_parallel_size", sequence_parallel)
    run = train("sft", f"two{sequence_parallel}", *tiny, *flags).check()
    assert_same(run, one_process)
    assert len(list(run.checkpoints.glob("global_step_5/model_world_size_2_rank_*.pt"))) == 2


def test_killed_at_a_random_step_it_goes_on_with_the_same_losses(
    train: Trainer, tiny: list[str], one_process: Run
) -> None:
    step = random.SystemRandom().randint(1, 4)
    run, process = train.start("sft", "killed", *tiny, "--save_freq", "1")
    wait_for_step(run, step, process)
    wait_for_checkpoint(run, process)
    process.kill()
    process.wait()
    resumed = train("sft", "killed", "--resume", "killed").check()
    assert [attempt["n"] for attempt in resumed.record["attempts"]] == [1, 2]
    start = resumed.record["attempts"][1]["resumed_from_step"]
    assert f"resuming sft/killed from step {start} of 5" in resumed.log
    assert_same(resumed, one_process)


@pytest.mark.matrix
def test_resume_at_the_end_of_an_epoch(train: Trainer, tiny: list[str], one_process: Run) -> None:
    first = train(
        "sft", "epoch", *tiny, "--steps", "2", "--lr_scheduler", "constant", "--warmup_ratio", "0"
    ).check()
    assert sorted(first.metrics) == [1, 2]
    again = train("sft", "epoch", "--resume", "epoch", "--steps", "5").check()
    straight = train("sft", "straight", *tiny, "--lr_scheduler", "constant", "--warmup_ratio", "0").check()
    assert_same(again, straight)


def test_lora_run_is_exported_whole(train: Trainer, tiny: list[str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run = train("sft", "lora", *tiny, "--steps", "2", "--use_lora", "--lora_rank", "4").check()
    step = run.checkpoints / "global_step_2"
    assert (step / "lora_train_meta.json").is_file()
    assert not list(step.glob("huggingface/*.safetensors"))
    out = tmp_path / "model"
    command = [sys.executable, "-m", "common.checkpoints", "export", str(step), str(out)]
    subprocess.run(command, cwd=ROOT, check=True)
    _, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
