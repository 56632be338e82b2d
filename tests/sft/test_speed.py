"""What SFT leaves out on the CPU changes no learned value and no gradient."""

from __future__ import annotations

import pytest
import torch

from common.cpu import lean_engine
from common.cpu.lean_engine import UNREAD_NO_ENTROPY

pytestmark = pytest.mark.slow  # imports verl


@pytest.mark.parametrize(("temperature", "most_rows"), [(1.0, 4096), (0.7, 4096), (1.0, 2)])
def test_log_probs_of_learned_tokens(
    monkeypatch: pytest.MonkeyPatch, temperature: float, most_rows: int
) -> None:
    from verl.utils.experimental import torch_functional

    monkeypatch.setattr(
        torch_functional.FusedLinearForPPO, "forward", torch_functional.FusedLinearForPPO.forward
    )
    monkeypatch.setattr(lean_engine, "MOST_ROWS", most_rows)
    torch.manual_seed(0)
    hidden, weight = torch.randn(1, 9, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    labels = torch.randint(0, 11, (1, 9))
    learned = torch.tensor([[0, 0, 1, 1, 0, 1, 0, 0, 1]]).bool()
    fused = torch_functional.FusedLinearForPPO(chunk_size=4)
    expected = fused.forward(hidden, weight, labels, temperature)[0]
    wanted = torch.autograd.grad(expected[learned].square().sum(), (hidden, weight))
    lean_engine.log_probs_of_wanted(torch_functional)
    found = fused.forward(hidden, weight, torch.where(learned, labels, UNREAD_NO_ENTROPY), temperature)[0]
    assert torch.allclose(found[learned], expected[learned], atol=1e-6)
    assert (found[~learned] == 0).all()
    for ours, theirs in zip(
        torch.autograd.grad(found[learned].square().sum(), (hidden, weight)), wanted, strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_batch_without_learned_tokens_has_a_gradient_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.utils.experimental import torch_functional

    monkeypatch.setattr(
        torch_functional.FusedLinearForPPO, "forward", torch_functional.FusedLinearForPPO.forward
    )
    lean_engine.log_probs_of_wanted(torch_functional)
    hidden, weight = torch.randn(1, 3, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    fused = torch_functional.FusedLinearForPPO()
    found = fused.forward(hidden, weight, torch.full((1, 3), UNREAD_NO_ENTROPY))[0]
    (gradient,) = torch.autograd.grad(found.sum(), (hidden,))
    assert (gradient == 0).all()
