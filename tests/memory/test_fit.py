"""What fits, the command line, and the table of the READMEs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from common.launcher.errors import UserError
from common.memory import __main__ as command
from common.memory import estimate
from common.memory.compose import ROOT, compose
from common.memory.fit import USABLE, largest, shortage, with_budget
from common.memory.models import config_of, known_models
from common.memory.sizes import parse_size
from common.memory.table import BEGIN, END, FILES, fill, markdown, rows

GIB = 1 << 30


@pytest.mark.parametrize(
    ("method", "words", "memory", "knob"),
    [
        ("sft", ["--batch_size", "512"], 24 * GIB, "MAX_TOKENS_PER_GPU"),
        ("sft", ["--use_dynamic_bsz", "false", "--batch_size", "512"], 24 * GIB, "MICRO_BATCH_SIZE"),
        ("ppo", ["--batch_size", "1024"], 48 * GIB, "MAX_TOKENS_PER_GPU"),
    ],
)
def test_one_more_would_not_fit(method: str, words: list[str], memory: int, knob: str) -> None:
    shape = known_models()["Qwen2.5-0.5B"]
    config = compose(method, ["--model", "any", *words])
    found = largest(config, shape, memory=memory, gpus=1)
    assert found.knob == knob
    assert found.value > found.smallest
    assert found.limit in ("update_actor", "update_critic", "log_prob", "validate")

    def stopped(value: int) -> str:
        return shortage(estimate(with_budget(config, value), shape, gpus=1, gpu_memory=memory), memory)

    assert stopped(found.value) == ""
    assert stopped(found.value + 1) == found.limit


def test_a_model_that_cannot_fit_says_which_phase() -> None:
    config = compose("grpo", ["--model", "any"])
    found = largest(config, known_models()["Qwen2.5-32B"], memory=24 * GIB, gpus=1)
    assert (found.value, found.limit) == (0, "load")


def test_a_cache_for_less_than_one_sequence_does_not_fit() -> None:
    config = compose("grpo", ["--model", "any", "--gpu_memory_utilization", "0.2"])
    shape = known_models()["Qwen2.5-3B"]
    found = estimate(config, shape, gpus=8, gpu_memory=24 * GIB)
    assert all(phase.gpu_bytes < USABLE * 24 * GIB for phase in found.phases)
    assert found.kv_tokens < found.kv_needed
    assert shortage(found, 24 * GIB) == "rollout"


def test_the_config_is_that_of_any_machine() -> None:
    config = compose("sft", ["--model", "far/away", "--gpus", "64", "--nodes", "4", "engine.fsdp_size=8"])
    assert (config["trainer"]["device"], config["trainer"]["n_gpus_per_node"]) == ("cuda", 64)
    assert (config["trainer"]["nnodes"], config["engine"]["fsdp_size"]) == (4, 8)
    assert config["model"]["path"] == "far/away"
    with pytest.raises(UserError, match="N_GPUS='many' must be auto or a whole number"):
        compose("sft", ["--gpus", "many"])


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80 * GIB), ("24 GiB", 24 * GIB), ("80", 80 * GIB), ("46068MB", 46068 << 20)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["memory", *words])
    command.run()


def test_the_command_prints_every_phase(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        monkeypatch,
        "grpo",
        "--model",
        "Qwen/Qwen2.5-7B-Instruct",
        "--gpus",
        "8",
        "--gpu-memory",
        "80GB",
        "--json",
    )
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["parameters"] == 7615616512
    assert {"rollout", "log_prob", "update_actor", "update_weights", "save"} < {
        p["name"] for p in found["phases"]
    }
    run(
        monkeypatch,
        "--method",
        "sft",
        "--model",
        "Qwen2.5-0.5B",
        "--gpus",
        "1",
        "--gpu-memory",
        "24GB",
        "--fit",
    )
    said = capsys.readouterr().out
    assert "update_actor" in said
    assert "fits up to MAX_TOKENS_PER_GPU=" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sft", "--model", "no/such-model"], "no folder with a config.json"),
        (["sfft"], "'sfft' is no method: begin with one of sft, dpo"),
        (["sft", "--modle", "x"], "unknown flag --modle; did you mean --model?"),
        (["sft", "--model", "Qwen2.5-7B", "--fit"], "--fit needs --gpu-memory"),
        (["sft", "--model", "Qwen2.5-7B", "--gpu-memory", "big"], "write a size such as 80GB"),
        (["sft", "--model", "Qwen2.5-7B", "data.no_such_key=1"], "verl 0.9.1 has no key 'data.no_such_key'"),
        (["sft", "--model", "{mamba}"], "model_type 'mamba2' is not known"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba2"}')
    with pytest.raises(UserError) as caught:
        run(monkeypatch, *(word.format(mamba=tmp_path) for word in words))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_exit_code_says_that_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "sft", "--model", "Qwen2.5-32B", "--gpus", "1", "--gpu-memory", "24GB")
    assert caught.value.code == 1


def test_models_by_folder_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert config_of(str(tmp_path)) == {"model_type": "llama"}
    assert config_of("Qwen/Qwen2.5-1.5B-Instruct") == known_models()["Qwen2.5-1.5B"]
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        config_of(str(tmp_path))


def test_a_readme_without_marks_is_left_alone() -> None:
    assert fill(f"a\n{BEGIN}\nold\n{END}\nb", "new") == "a\nnew\nb"
    with pytest.raises(UserError, match="no table to fill"):
        fill("a", "new")


@pytest.mark.slow
def test_the_readmes_hold_the_table_that_the_command_makes() -> None:
    found = rows()
    for name, first in FILES.items():
        assert markdown(first, found) in (ROOT / name).read_text(encoding="utf-8"), (
            f"{name}: run python -m common.memory table"
        )


@pytest.mark.slow
def test_the_cache_takes_what_vllm_says() -> None:
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    from common.memory.architecture import read_shape
    from common.memory.rollout import BLOCK, read_rollout

    shape = read_shape(known_models()["Qwen2.5-7B"])
    for parallel, heads in ((1, 4), (2, 2), (8, 1)):
        rollout: dict[str, Any] = {"tensor_model_parallel_size": parallel, "dtype": "bfloat16"}
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=heads, head_size=128, dtype=torch.bfloat16)
        found = read_rollout(shape, rollout, lora=False, model_length=32768)
        assert found.kv_token * BLOCK == spec.page_size_bytes * shape.layers
