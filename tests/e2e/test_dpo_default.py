"""The default run of dpo/train.sh on a CPU: it learns, resumes, exports, and leaves all that was promised."""

from __future__ import annotations

import pytest

from .conftest import ROOT, Run, Trainer, wait_for_step

pytestmark = pytest.mark.e2e
STEPS = 30


@pytest.fixture(scope="module")
def learned(train: Trainer) -> Run:
    return train("dpo", "learned", "--steps", str(STEPS), "--test_freq", "15").check()


def test_held_out_accuracy_rises(learned: Run) -> None:
    before, after = learned.metrics[0], learned.metrics[STEPS]
    assert before["val/rewards/accuracies"] == pytest.approx(0.5, abs=0.15)
    assert after["val/rewards/accuracies"] >= 0.8
    assert after["val/loss"] < 0.6 < before["val/loss"]
    assert after["val/rewards/margins"] > 0.2


def test_every_step_is_logged_and_the_run_recorded(learned: Run) -> None:
    assert sorted(learned.metrics) == list(range(STEPS + 1))
    assert learned.record["state"] == "finished"
    assert "dpo/learned: finished at step 30 of 30" in learned.log


def test_export_loads_in_transformers_and_prefers_the_chosen_answers(learned: Run) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from common.cpu.model import ensure_bundled_model

    folder = learned.checkpoints / f"global_step_{STEPS}" / "huggingface"
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    before = AutoModelForCausalLM.from_pretrained(ensure_bundled_model(), dtype="auto")
    weight = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(model.state_dict()[weight].float(), before.state_dict()[weight].float())


@pytest.mark.matrix
def test_a_killed_run_goes_on_as_if_nothing_had_happened(train: Trainer) -> None:
    pairs = train.output.parent / "pairs.jsonl"
    rows = (ROOT / "dpo/data/train.jsonl").read_text().splitlines(keepends=True)
    pairs.write_text("".join(rows[:24]))
    flags = (
        *("--train_data", str(pairs), "--val_data", str(pairs), "--cpu_dtype", "float32"),
        *("--steps", "4", "--batch_size", "4", "--save_freq", "2", "--test_freq", "0"),
    )
    whole = train("dpo", "whole", *flags).check()
    run, process = train.start("dpo", "killed", *flags)
    wait_for_step(run, 3, process)
    process.kill()
    process.wait()
    resumed = train("dpo", "killed", "--resume", "killed").check()
    assert "resuming dpo/killed from step 2 of 4" in resumed.log
    assert "reference log-probs of 24 train pairs: found from an earlier run" in resumed.log
    for step in (1, 2, 3, 4):
        for key in ("train/loss", "train/grad_norm"):
            assert resumed.metrics[step][key] == pytest.approx(whole.metrics[step][key], rel=1e-5)


@pytest.mark.matrix
def test_lora_and_another_loss(train: Trainer) -> None:
    run = train("dpo", "lora", "--smoke", "--use_lora", "--loss_type", "apo_zero").check()
    step = run.checkpoints / "global_step_2"
    assert (step / "lora_train_meta.json").is_file()
    assert not list(step.glob("huggingface/*.safetensors"))


@pytest.mark.matrix
def test_two_processes(train: Trainer) -> None:
    run = train("dpo", "ranks", "--smoke", "--gpus", "2").check()
    assert len(list(run.checkpoints.glob("global_step_2/model_world_size_2_rank_*.pt"))) == 2
