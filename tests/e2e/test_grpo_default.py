"""The default run of grpo/train.sh on a CPU: it must learn, and leave all that was promised."""

from __future__ import annotations

import json
import re
import subprocess

import psutil
import pytest

from .conftest import ROOT, Run, Trainer, wait_for_step

pytestmark = pytest.mark.e2e
STEPS = 30
REWARD = "critic/score/mean"
VALIDATION = "val-core/val/acc/mean@1"


def mean_reward(run: Run, steps: range) -> float:
    return sum(run.metrics[step][REWARD] for step in steps) / len(steps)


def assert_learned(run: Run) -> None:
    first, last = mean_reward(run, range(1, 6)), mean_reward(run, range(STEPS - 4, STEPS + 1))
    assert last - first >= 0.2, (first, last)
    assert run.metrics[STEPS][VALIDATION] > run.metrics[0][VALIDATION]


@pytest.fixture(scope="module")
def default_run(grpo_default: Run) -> Run:
    return grpo_default


def test_reward_rises_in_training_and_on_held_out_prompts(default_run: Run) -> None:
    assert_learned(default_run)


def test_metrics_and_rollouts_for_every_step(default_run: Run) -> None:
    assert sorted(default_run.metrics) == list(range(STEPS + 1))
    for step in range(1, STEPS + 1):
        rows = (default_run.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()
        assert len(rows) == 64
        assert {"input", "output", "gts", "score", "step"} <= json.loads(rows[0]).keys()
    assert list((default_run.folder / "validation").glob("*.jsonl"))
    assert (default_run.folder / "gpu.jsonl").stat().st_size > 0


def test_checkpoint_loads_in_transformers_and_answers(default_run: Run) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from common.cpu.model import ensure_bundled_model

    folder = default_run.checkpoints / f"global_step_{STEPS}" / "actor" / "huggingface"
    # In the precision that the config names, which the run computed in: this small policy is sensitive to it.
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    before = AutoModelForCausalLM.from_pretrained(ensure_bundled_model(), dtype="auto")
    weight = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(model.state_dict()[weight], before.state_dict()[weight])
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    rows = [json.loads(line) for line in (ROOT / "grpo/data/val.jsonl").read_text().splitlines()]
    chats = [[{"role": "user", "content": row["question"]}] for row in rows]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
    )
    answers = model.generate(**batch, max_new_tokens=16, do_sample=False)[:, batch["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    right = [re.findall(r"\d+", text)[-1:] == [row["answer"]] for text, row in zip(texts, rows, strict=True)]
    # The exported model answers as well as verl's own last validation says.
    assert abs(sum(right) / len(right) - default_run.metrics[STEPS][VALIDATION]) <= 0.1


def test_summary_and_record(default_run: Run) -> None:
    assert "grpo/default: finished at step 30 of 30" in default_run.log
    assert "huggingface" in default_run.log
    assert default_run.record["state"] == "finished"


def test_whole_run_stays_within_twelve_gigabytes(default_run: Run) -> None:
    assert 2e9 < default_run.peak_memory <= 12 * 1024**3, f"{default_run.peak_memory / 1024**3:.1f} GiB"


def test_nothing_is_left_running(default_run: Run) -> None:
    from common.launcher import processes

    assert processes.tagged(default_run.record["attempts"][-1]["tag"]) == []


@pytest.mark.matrix
def test_killed_run_goes_on_with_the_same_data_order(train: Trainer, default_run: Run) -> None:
    flags = ("--steps", "4", "--n", "2", "--save_freq", "2", "--test_freq", "0", "--seed", "1")
    run, process = train.start("grpo", "killed", *flags)
    wait_for_step(run, 3, process)
    process.kill()
    process.wait()
    kept = run.metrics
    assert set(kept) >= {0, 1, 2, 3}
    resumed = train("grpo", "killed", "--resume", "killed").check()
    assert "resuming grpo/killed from step 2 of 4" in resumed.log
    assert sorted(resumed.metrics) == [0, 1, 2, 3, 4]
    assert resumed.metrics[1] == kept[1]
    # The validation before going on is logged at the same step, beside what was there.
    assert kept[2].items() <= resumed.metrics[2].items()
    assert [attempt["resumed_from_step"] for attempt in resumed.record["attempts"]] == [None, 2]
    for step in (1, 2, 3, 4):
        assert resumed.prompts(step) == default_run.prompts(step), step


@pytest.mark.matrix
def test_lora_run_never_exports_wrong_keys(train: Trainer) -> None:
    run = train("grpo", "lora", "--smoke", "--use_lora", "--lora_rank", "8").check()
    step = run.checkpoints / "global_step_2" / "actor"
    assert (step / "lora_train_meta.json").is_file()
    assert not list(step.glob("huggingface/*.safetensors"))


def test_exception_in_the_reward_stops_the_run_with_that_error(
    train: Trainer, tmp_path_factory: object
) -> None:
    bad = train.output.parent / "bad_reward.py"
    bad.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    raise RuntimeError('the judge is out to lunch')\n"
    )
    refused = train("grpo", "bad", "--smoke", "--reward_func_path", str(bad))
    assert refused.code == 2
    assert "calls raised; first: " in refused.log
    run = train("grpo", "bad", "--smoke", "--no-preflight", "--reward_func_path", str(bad), timeout=400)
    assert run.code != 0
    assert run.record["state"] == "failed"
    said = run.log.rpartition("failed   the reward function raised: ")[2]
    assert "the judge is out to lunch" in said.partition("\n")[0]
    assert run.record["failure"]["kind"] == "reward"


@pytest.mark.matrix
@pytest.mark.parametrize("seed", ["2", "3"])
def test_learns_with_other_seeds(train: Trainer, seed: str) -> None:
    assert_learned(train("grpo", f"seed{seed}", "--seed", seed, "--save_freq", "0").check())


@pytest.mark.matrix
def test_two_training_processes_on_one_host(train: Trainer) -> None:
    if psutil.virtual_memory().total < 20 * 1024**3:
        pytest.skip("two ranks with two rollout engines need 20 GiB of RAM")
    run = train("grpo", "ranks", "--smoke", "--gpus", "2").check()
    assert sorted(step for step in run.metrics if step) == [1, 2]
    shards = sorted(
        path.name for path in run.checkpoints.glob("global_step_2/actor/model_world_size_2_rank_*.pt")
    )
    assert len(shards) == 2
    flags = ("--resume", "ranks", "--steps", "4", "--gpus", "1")
    done = subprocess.run(
        ["bash", str(ROOT / "grpo/train.sh"), "--output_dir", str(run.output), *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "written by 2 process(es), this launch has 1" in done.stderr
