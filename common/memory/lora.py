"""Size of a LoRA adapter from the shape of the model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from common.memory.architecture import Shape, Tensor

# Whose fused experts PEFT 0.21 adapts too under all-linear, as separate matrices: gate and up make twice the rank.
_ADAPTED_EXPERTS = ("mixtral", "qwen3_moe")


def lora_parameters(shape: Shape, rank: int, targets: str | Sequence[str] = "all-linear") -> int:
    """Weights of a LoRA adapter: rank x (inputs + outputs) of every target.

    Source: PEFT ``LoraConfig(r, target_modules)``, ``lora_A`` (rank, in) and ``lora_B`` (out, rank).

    Args:
        targets: ``all-linear`` (every linear layer but the head), a list of module names (ends of them), or a
            regular expression.
    """
    total = 0
    for tensor in shape.tensors:
        if targets != "all-linear" and not _named(tensor, targets):
            continue
        total += _adapter(tensor, shape, targets == "all-linear") * rank * tensor.count
    return total


def _named(tensor: Tensor, targets: str | Sequence[str]) -> bool:
    if isinstance(targets, str):
        return bool(re.fullmatch(targets, f"model.{tensor.module.replace('layers.', 'layers.0.', 1)}"))
    return tensor.module.rsplit(".", 1)[-1] in targets


def _adapter(tensor: Tensor, shape: Shape, every: bool) -> int:
    """Adapter weights of one tensor per unit of rank."""
    name = tensor.module
    if name in ("embed_tokens", "lm_head", "score"):
        return 0
    adapted = every and shape.family in _ADAPTED_EXPERTS
    if name.endswith("router"):
        return sum(tensor.shape) if adapted else 0
    if len(tensor.shape) == 3:
        experts, out, width = tensor.shape
        return experts * (out + width) * (2 if "gate_up" in name else 1) if adapted else 0
    # Beside adapted experts PEFT leaves the dense MLP of a mixed model out.
    if len(tensor.shape) != 2 or (adapted and ".mlp." in name):
        return 0
    return sum(tensor.shape)
