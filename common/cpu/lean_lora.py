"""LoRA on a CPU: one step in place of PEFT's five, which leaves no temporaries of the output's size behind.

PEFT's ``lora.Linear.forward`` makes the base's output, the adapter's, its scaled copy and their sum, in every layer;
in glibc's heap such holes are not filled again (docs/memory.md), and LoRA took more memory than training all weights.
Results are PEFT's up to rounding.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor

from common.cpu.lean_layers import matmul


class _LoRALinear(torch.autograd.Function):
    """x @ weight.T + bias + scaling * (x @ a.T) @ b.T, weight and bias frozen; keeps x and x @ a.T."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low = matmul(flat, a)
        out = matmul(flat, weight).addmm_(low, b.t(), alpha=scaling)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scaling = scaling
        return (out if bias is None else out.add_(bias)).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, a, b, low = ctx.saved_tensors
        flat, out = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        back = matmul(out, b.t()).mul_(ctx.scaling)
        to_x = matmul(out, weight.t()).addmm_(back, a).view(x.shape) if ctx.needs_input_grad[0] else None
        to_a = matmul(back.t(), flat.t())
        to_b = matmul(out.t(), low.t()).mul_(ctx.scaling)
        return to_x, None, None, to_a, to_b, None


def _plain(layer: Any, x: Tensor) -> str | None:
    """The adapter of a layer that is nothing but LoRA on a frozen linear layer, with everything of one dtype."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    (name,) = layer.active_adapters
    base = layer.base_layer
    if name not in layer.lora_A or name in layer.lora_variant or type(base) is not torch.nn.Linear:
        return None
    a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    frozen = not any(parameter.requires_grad for parameter in base.parameters())
    same = x.dtype == base.weight.dtype == a.weight.dtype == b.weight.dtype
    simple = isinstance(dropout, torch.nn.Identity) and a.bias is None and b.bias is None
    return str(name) if frozen and same and simple and x.numel() else None


def _forward(self: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
    name = None if args or options else _plain(self, x)
    if name is None:
        return type(self).forward(self, x, *args, **options)
    base, a, b = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
    return _LoRALinear.apply(x, base.weight, base.bias, a, b, self.scaling[name])


def install(module: torch.nn.Module) -> None:
    """Give the LoRA layers of a model that PEFT has wrapped this forward pass; before FSDP wraps it."""
    from peft.tuners.lora import Linear

    for layer in module.modules():
        if type(layer) is Linear:
            vars(layer)["forward"] = types.MethodType(_forward, layer)
