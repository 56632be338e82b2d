"""Right configurations pass without an error: all methods, GRPO's relatives, LoRA, several nodes, CPU and GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from common.preflight import hardware
from common.preflight.report import Report

from .conftest import ON_A_CLUSTER

pytestmark = pytest.mark.slow

CPU, GPU = ("--device", "cpu"), ("--device", "gpu", "--gpus", "8")
NODES = ("--nnodes", "2", "--master_addr", "10.0.0.1", "--node_rank", "0", "--name", "pf")
R = "actor_rollout_ref.rollout"
ALGORITHMS = (
    *("grpo", "dr_grpo", "dapo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "opo", "gpg"),
    *("cispo", "sapo", "gmpo", "remax"),
)
RIGHT = [
    *(("grpo", (*(CPU if i % 2 else GPU), "--algorithm", name), []) for i, name in enumerate(ALGORITHMS)),
    ("grpo", (*GPU, "--use_lora"), []),
    # 5 x 2 answers on 6 GPUs: verl wants that to divide with static batches only.
    (
        "grpo",
        ("--device", "gpu", "--gpus", "6", "--sequence_parallel_size", "3", "--use_dynamic_bsz", "true"),
        ["data.train_batch_size=5", "actor_rollout_ref.actor.ppo_mini_batch_size=5", f"{R}.n=2"],
    ),
    ("grpo", CPU, ["algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=acc"]),
    ("grpo", (*GPU, "--nnodes", "2"), []),
    ("grpo", (*GPU, "--use_dynamic_bsz", "false"), []),
    ("grpo", (*GPU, "--offload", "--strategy", "fsdp", "--rollout_engine", "sglang"), []),
    ("grpo", CPU, ["trainer.balance_batch=False", f"{R}.top_p=0.95"]),
    (
        "grpo",
        CPU,
        [f"{R}.val_kwargs.n=4", f"{R}.val_kwargs.do_sample=True", f"{R}.val_kwargs.temperature=0.7"],
    ),
    ("grpo", CPU, [f"+{R}.engine_kwargs.vllm.swap_space=1"]),
    (
        "grpo",
        CPU,
        [
            f"{R}.top_k=0",
            f"{R}.enable_chunked_prefill=False",
            f"{R}.max_num_batched_tokens=20",
            f"{R}.max_num_seqs=8",
        ],
    ),
    ("ppo", CPU, []),
    ("ppo", (*GPU, "--use_dynamic_bsz", "false", "--n", "4"), []),
    ("gspo", CPU, []),
    ("gspo", (*GPU, "--self_play_rounds", "1"), []),
    ("sft", CPU, ["trainer.save_freq=after_each_epoch"]),
    ("sft", (*GPU, "--use_lora"), []),
    ("sft", (*GPU, *NODES), []),
    ("sft", (*GPU, "--packing", "false", "--use_dynamic_bsz", "false"), []),
    ("dpo", CPU, []),
    ("dpo", (*GPU, "--use_lora", "--loss_type", "ipo"), []),
    ("dpo", (*GPU, *NODES), []),
]


@pytest.mark.parametrize(
    ("method", "flags", "words"), RIGHT, ids=[f"{m} {' '.join([*f, *w])}" for m, f, w in RIGHT]
)
def test_a_right_configuration_passes(
    examined: Callable[..., Report],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    flags: tuple[str, ...],
    words: list[str],
) -> None:
    # No cluster can be here; what its absence says is in test_wrong.py.
    monkeypatch.setattr(hardware, "cluster_nodes", lambda address: [{"CPU": 96.0, "GPU": 8.0}] * 2)
    machine = ON_A_CLUSTER if method == "grpo" and "--nnodes" in flags else None
    report = examined(method, flags, words, machine, ask=True)
    assert [finding.text for finding in report.findings if finding.severity == "error"] == []
    assert report.what["steps"] != "unknown"
    assert report.cost is not None
    assert report.cost.phases
    assert report.cost.checkpoint > 0


def test_what_is_unwise_is_a_warning(examined: Callable[..., Report]) -> None:
    words = ["trainer.default_local_dir=/elsewhere", "trainer.save_freq=-1"]
    report = examined("grpo", CPU, words)
    warnings = [finding.text for finding in report.findings if finding.severity == "warning"]
    assert any("trainer.default_local_dir is set beside OUTPUT_DIR" in text for text in warnings)
    assert any("no checkpoint will be written" in finding.text for finding in report.findings)
    assert not report.errors


def test_less_than_a_whole_checkpoint_is_a_warning(examined: Callable[..., Report]) -> None:
    report = examined("sft", CPU, ["checkpoint.save_contents=[model]"])
    (text,) = (f.text for f in report.findings if f.severity == "warning" and "save_contents" in f.text)
    assert "leaves optimizer and extra out" in text
    assert not report.errors


def test_local_folders_of_several_nodes_are_warned_of(
    examined: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cluster_nodes", lambda address: [{"CPU": 96.0, "GPU": 8.0}] * 2)
    report = examined(
        "grpo", (*GPU, "--nnodes", "2"), [], replace(ON_A_CLUSTER, filesystem=lambda path: "ext4")
    )
    assert not report.errors
    assert sum("is on ext4, which others do not see" in finding.text for finding in report.findings) == 3
