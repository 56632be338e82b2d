"""The layers of a decoder on a CPU: fp32 matrix products through oneDNN, and less kept for the backward pass.

PyTorch's fp32 matrix products go to MKL, which leaves AVX-512 unused on CPUs that are not Intel's; oneDNN, which is
in every PyTorch build, uses it (two cores of an AMD EPYC: 400 to 450 instead of 190 to 210 GFLOP/s). And eager RMSNorm
and SwiGLU keep five tensors per layer that are cheap to compute again. Results are those of the eager layers up to fp32
rounding.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """left (n, k) @ right (m, k).T; through oneDNN for fp32 on the CPU."""
    if (
        left.dtype == right.dtype == torch.float32
        and left.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
    ):
        return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return left @ right.t()


class _Linear(torch.autograd.Function):
    """``functional.linear`` with `matmul` in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        out = matmul(x.reshape(-1, x.shape[-1]), weight)
        return (out if bias is None else out.add_(bias)).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        to_x = matmul(flat, weight.t()).view(x.shape) if ctx.needs_input_grad[0] else None
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = matmul(flat.t(), x.reshape(-1, x.shape[-1]).t())
        return to_x, to_weight, flat.sum(0) if ctx.has_bias else None


class _RMSNorm(torch.autograd.Function):
    """weight * x / rms(x); keeps x and a number per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        scale = x.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        to_weight = (grad * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        weighted = grad * weight
        along = (weighted * normed).mean(-1, keepdim=True)
        return weighted.sub_(normed.mul_(along)).mul_(scale), to_weight, None


def _swiglu_slopes(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of silu(gate) * up with respect to gate and up."""
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    to_up = grad * silu
    # d silu / d gate = sigmoid * (1 + gate - silu)
    slope = sigmoid.mul_(silu.neg_().add_(gate).add_(1))
    return slope.mul_(grad).mul_(up), to_up


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up; keeps its two inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return _swiglu_slopes(grad, *ctx.saved_tensors)


class _SwiGLUDown(torch.autograd.Function):
    """(silu(gate) * up) @ weight.T; keeps gate and up, and makes their product again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        product = functional.silu(gate).mul_(up)
        return matmul(product.view(-1, product.shape[-1]), weight).view(*gate.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:  # type: ignore[override]
        gate, up, weight = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        to_weight = None
        if ctx.needs_input_grad[2]:
            product = functional.silu(gate).mul_(up).view(-1, gate.shape[-1])
            to_weight = matmul(flat.t(), product.t())
        return *_swiglu_slopes(matmul(flat, weight.t()).view(gate.shape), gate, up), to_weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``functional.linear``, through `matmul` for fp32 outside autocast (oneDNN refuses no rows at all)."""
    if x.numel() and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        return _Linear.apply(x, weight, bias)
    return functional.linear(x, weight, bias)


def _linear(self: Any, x: Tensor) -> Tensor:
    return linear(x, self.weight, self.bias)


def _norm(self: Any, x: Tensor) -> Tensor:
    if x.dtype == self.weight.dtype == torch.float32:
        return _RMSNorm.apply(x, self.weight, self.variance_epsilon)
    return type(self).forward(self, x)


def _mlp(self: Any, x: Tensor) -> Tensor:
    gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
    if (
        type(down) is torch.nn.Linear
        and down.bias is None
        and gate.dtype == down.weight.dtype == torch.float32
    ):
        return _SwiGLUDown.apply(gate, up, down.weight)
    return down(_SwiGLU.apply(gate, up))


_NORMS = ("LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "MistralRMSNorm")
_MLPS = ("LlamaMLP", "Qwen2MLP", "Qwen3MLP", "MistralMLP")


def install(module: torch.nn.Module) -> None:
    """Give a transformers model on the CPU these layers; kinds that are not known stay as they are.

    Args:
        module: before FSDP or PEFT wrap it.
    """
    for layer in module.modules():
        name = type(layer).__name__
        forward: Any = None
        if type(layer) is torch.nn.Linear:
            forward = _linear
        elif name in _NORMS:
            forward = _norm
        elif name in _MLPS and getattr(layer.config, "hidden_act", "") == "silu":
            forward = _mlp
        if forward is not None:
            vars(layer)["forward"] = types.MethodType(forward, layer)
