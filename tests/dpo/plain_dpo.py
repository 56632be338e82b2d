"""DPO written plainly: one sequence at a time, transformers and PyTorch only, fp32. The reference for the trainer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dpo.preference_data import Answer, Pair


def answer_logp(model: Any, pair: Pair, answer: Answer) -> Tensor:
    """Summed log-prob of an answer behind its prompt."""
    ids = torch.tensor([pair.prompt + answer.ids])
    logs = model(input_ids=ids).logits[0].log_softmax(-1)
    learned = torch.tensor([False] * len(pair.prompt) + answer.learned)[1:]
    return logs[:-1].gather(1, ids[0, 1:, None])[:, 0][learned].sum()


def margins(model: Any, pair: Pair) -> Tensor:
    """(2,): chosen and rejected."""
    return torch.stack([answer_logp(model, pair, answer) for answer in (pair.chosen, pair.rejected)])


def train(
    model: Any,
    pairs: list[Pair],
    order: Iterable[list[int]],
    *,
    lr: float,
    clip: float,
    beta: float,
    reference: Any,
) -> list[dict[str, float]]:
    """Steps of AdamW (betas 0.9, 0.999, no decay) on DPO's loss; loss, gradient norm and mean margin of each."""
    with torch.no_grad():
        frozen = torch.stack([margins(reference, pair) for pair in pairs])
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.999), weight_decay=0.0)
    found = []
    for batch in order:
        ratios = torch.stack([margins(model, pairs[number]) - frozen[number] for number in batch])
        margin = beta * (ratios[:, 0] - ratios[:, 1])
        loss = torch.log1p(torch.exp(-margin)).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
        found.append({"loss": loss.item(), "grad_norm": norm.item(), "rewards/margins": margin.mean().item()})
    return found
