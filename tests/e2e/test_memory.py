"""The memory estimate against the measured peaks of real runs on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.memory import CASES, TARGET, compare, estimated, programs
from common.cpu.model import ensure_bundled_model

from .conftest import Run

pytestmark = pytest.mark.e2e


def near(found: float, name: str) -> None:
    assert 1 - TARGET <= found <= 1 + TARGET, f"{name}: estimated / measured = {found:.2f}"


@pytest.mark.matrix
def test_sft_of_the_smallest_size(tmp_path: Path) -> None:
    near(compare("sft 60M", tmp_path, programs("sft", tmp_path)[0]).ratio, "sft 60M")


def test_default_grpo_as_a_whole(grpo_default: Run) -> None:
    """All its processes together, interpreters and Ray included, as the preflight says it."""
    said = estimated("grpo", str(ensure_bundled_model()), ["--device", "cpu"]).host_peak.host_bytes
    near(said / grpo_default.peak_memory, "default GRPO")


@pytest.mark.matrix
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_every_case(method: str, tmp_path: Path) -> None:
    without, _ = programs(method, tmp_path)
    found = {
        name: compare(name, tmp_path, without).ratio for name, case in CASES.items() if case[0] == method
    }
    for name, ratio in found.items():
        near(ratio, name)
