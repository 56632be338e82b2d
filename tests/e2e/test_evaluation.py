"""The checkpoints that real runs write, evaluated by test.sh: trained beats untrained, LoRA included."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from common.checkpoints import housekeeping, merge, resolve

from .conftest import ROOT, Run, Trainer

pytestmark = pytest.mark.e2e
ADDITION = ["--input_file", "grpo/data/val.jsonl", "--temperature", "0", "--max_new_tokens", "16"]
ORDERS = [
    "--input_file",
    "sft/data/val.jsonl",
    "--limit",
    "32",
    "--temperature",
    "0",
    "--max_new_tokens",
    "64",
]


def evaluate(*words: str | Path) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "test.sh"), *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False
    )


def compare(folder: Path, base: str | Path, trained: str | Path, *flags: str | Path) -> dict[str, Any]:
    """The figures of --compare."""
    done = evaluate("--compare", base, trained, *flags, "--output_file", folder / "compare.json")
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "compare.json").read_text())[0]


def test_grpo_checkpoint_beats_its_base(grpo_default: Run, tmp_path: Path) -> None:
    found = compare(tmp_path, "smollm2", grpo_default.checkpoints, *ADDITION)
    assert found["items"] == 64
    assert found["fixed"] > found["broken"] and found["low"] > 0, found


def test_vllm_gives_the_score_of_the_run_s_last_validation(grpo_default: Run, tmp_path: Path) -> None:
    flags = ("--batch", *ADDITION, "--use_vllm", "--output_file", tmp_path / "r.json")
    done = evaluate("--model_path", grpo_default.folder, *flags)
    assert done.returncode == 0, done.stderr[-4000:]
    right = json.loads((tmp_path / "r.json").read_text())["run"]["figures"]["right"]["value"]
    assert abs(right - grpo_default.metrics[30]["val-core/val/acc/mean@1"]) <= 0.05


def test_sft_checkpoint_beats_its_base(sft_default: Run, tmp_path: Path) -> None:
    found = compare(tmp_path, "smollm2", sft_default.checkpoints, *ORDERS, "--reward", "common:json_match")
    assert found["fixed"] > found["broken"] and found["low"] > 0.2, found


@pytest.mark.matrix
def test_sft_lora_checkpoint_is_really_applied_and_beats_its_base(
    train_once: Trainer, tmp_path: Path
) -> None:
    flags = ("--use_lora", "--lora_rank", "8", "--lora_alpha", "16", "--lr", "1e-3", "--steps", "15")
    run = train_once("sft", "lora", *flags, "--test_freq", "0").check()
    facts = housekeeping.verify(resolve(str(run.checkpoints)))
    assert facts["logits_from_base"] > 0.1
    assert merge(resolve(str(run.checkpoints))).info["lora_norm"] > 0
    found = compare(tmp_path, "smollm2", run.checkpoints, *ORDERS, "--reward", "common:json_match")
    assert found["fixed"] > found["broken"] and found["low"] > 0, found


@pytest.mark.matrix
def test_grpo_lora_checkpoint_is_really_applied(train_once: Trainer) -> None:
    run = train_once("grpo", "lora", "--smoke", "--use_lora", "--lora_rank", "8", "--lr", "1e-3").check()
    assert housekeeping.verify(resolve(str(run.checkpoints)))["logits_from_base"] > 0


@pytest.mark.matrix
def test_dpo_checkpoint_beats_its_base(train_once: Trainer, tmp_path: Path) -> None:
    run = train_once("dpo", "default").check()
    flags = ["--input_file", "dpo/data/val.jsonl", "--temperature", "0", "--max_new_tokens", "32"]
    found = compare(tmp_path, "smollm2", run.checkpoints, *flags, "--reward", "common:rouge_l")
    assert found["low"] > 0, found


@pytest.mark.matrix
def test_pipeline_rises_at_each_stage(train: Trainer) -> None:
    """docs/pipeline.md: base -> SFT -> GRPO, each from the one before, by `last:METHOD`."""
    result = train.output / "pipeline.json"
    data = ("--train_data", "grpo/data/train.jsonl", "--val_data", "grpo/data/val.jsonl")
    train("sft", "taught", *data, "--steps", "10").check()
    train("grpo", "polished", "--model", "last:sft").check()
    flags = ("--compare", "smollm2", "last:sft", "last:grpo", *ADDITION)
    done = evaluate(*flags, "--output_dir", train.output, "--output_file", result)
    assert done.returncode == 0, done.stderr[-4000:]
    taught, polished = json.loads(result.read_text())
    assert 0 < taught["difference"] < polished["difference"], (taught, polished)
