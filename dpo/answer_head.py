"""Log-probs of answer tokens only, without keeping the logits of anything else.

The language-model head is the dearest single layer of a small model: verl computes it for every token of a prompt
too, keeps the logits in fp32 and softmaxes them again in the backward pass. Here it runs on the hidden states that
predict an answer token, in chunks, and a batch that fits one chunk keeps its logits for the backward pass.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from common.cpu.lean_layers import matmul

IGNORE = -100
# Logits held at once, in elements: 128 MiB in fp32.
CHUNK = 2**25


class _LogProbs(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[label] per row; fp32 whatever the dtype of the matrix product."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
        rows = max(1, chunk // weight.shape[0])
        found, kept = [], None
        for part, label in zip(hidden.split(rows), labels.split(rows), strict=True):
            logits = matmul(part, weight).float()
            total = logits.logsumexp(-1)
            found.append(logits.gather(-1, label[:, None])[:, 0] - total)
            kept = logits.sub_(total[:, None])
        ctx.save_for_backward(hidden, weight, labels, kept if len(hidden) <= rows else None)
        ctx.rows = rows
        return torch.cat(found) if found else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        hidden, weight, labels, kept = ctx.saved_tensors
        to_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = None
        start = 0
        for part, label, above in zip(
            hidden.split(ctx.rows), labels.split(ctx.rows), grad.split(ctx.rows), strict=True
        ):
            logs = kept if kept is not None else matmul(part, weight).float()
            if kept is None:
                logs.sub_(logs.logsumexp(-1, keepdim=True))
            slope = logs.exp_().mul_(-above[:, None])
            slope.scatter_add_(-1, label[:, None], above[:, None])
            slope = slope.to(weight.dtype)
            if to_hidden is not None:
                to_hidden[start : start + len(part)] = matmul(slope, weight.t())
            if ctx.needs_input_grad[1]:
                more = matmul(slope.t(), part.t())
                to_weight = more if to_weight is None else to_weight.add_(more)
            start += len(part)
        return to_hidden, to_weight, None, None


def log_probs(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int = CHUNK) -> Tensor:
    """Log-probs (n,) in fp32 of `labels` (n,) under the logits of `hidden` (n, size) and `weight` (vocab, size).

    The backward pass may run once: it reuses the kept logits' memory.
    """
    return _LogProbs.apply(hidden.to(weight.dtype), weight, labels, chunk)


@dataclass
class AnswerOutput(ModelOutput):
    """What the model returns for `answer_labels`: log-probs (n,) of the labels that are not IGNORE, in order.

    FSDP looks for tensors in known containers only: without this base it would not gather weights for the backward.
    """

    log_probs: Tensor | None = None


def _plain(config: Any, head: Any) -> bool:
    """Whether the logits are hidden @ weight.T and nothing else."""
    scaled = (
        "final_logit_softcapping",
        "logit_scale",
        "logits_scaling",
        "lm_head_multiplier",
        "output_multiplier",
    )
    return (
        type(head) is torch.nn.Linear
        and head.bias is None
        and not any(getattr(config, name, None) for name in scaled)
    )


def install(module: Any) -> None:
    """Teach a causal language model of transformers the keyword `answer_labels`.

    The head is called as a module, not only read, so that FSDP gathers its weight. Models that do more with their
    logits than a matrix product, and heads that PEFT wraps, compute the logits of the answer tokens in their own
    forward (`logits_to_keep`). Without the keyword nothing changes.

    Args:
        module: before FSDP or PEFT wrap it.
    """
    original, head = module.forward, module.get_output_embeddings()
    if _plain(module.config.get_text_config(), head):
        matrix_product = head.forward

        def score(self: Any, hidden: Tensor, answer_labels: Tensor | None = None) -> Tensor:
            if answer_labels is None:
                return matrix_product(hidden)
            return log_probs(hidden, self.weight, answer_labels)

        head.forward = types.MethodType(score, head)
        head.scores_answers = True

    def forward(self: Any, *args: Any, answer_labels: Tensor | None = None, **kwargs: Any) -> Any:
        if answer_labels is None:
            return original(*args, **kwargs)
        wanted = (answer_labels[0] != IGNORE).nonzero()[:, 0]
        labels = answer_labels[0, wanted]
        own = self.get_output_embeddings()
        if vars(own).get("scores_answers"):
            hidden = self.get_decoder()(*args, **kwargs)[0][0]
            return AnswerOutput(own(hidden[wanted], answer_labels=labels))
        logits = original(*args, **kwargs, logits_to_keep=wanted).logits[0].float()
        return AnswerOutput(logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0])

    module.forward = types.MethodType(forward, module)
