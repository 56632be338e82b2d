"""What a run takes before it holds a model: interpreters, libraries, Ray. Measured, not computed (docs/memory.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# A CUDA context with the workspaces of cuBLAS and NCCL, per process. An assumption: no GPU was at hand.
CUDA_CONTEXT = 640 << 20


@dataclass(frozen=True)
class Runtime:
    """Bytes of a node's memory: `fixed` once, `per_rank` for each training process.

    Attributes:
        holes: on the CPU, heap beside the trainer's live tensors, as a share of them, by the bytes of the dtype that
            the model computes in. torch allocates by memalign, which in glibc cannot reuse a hole of just the right
            size, and the launcher has glibc keep what is freed (common/launch.sh).
    """

    fixed: int
    per_rank: int
    holes: Mapping[int, float]


# The peaks of a tiny model's SFT and GRPO (all its processes), less its tensors. DPO runs the same programs as SFT.
_TORCHRUN = Runtime(fixed=0, per_rank=1065 << 20, holes={4: 0.33, 2: 0.2})
_MEASURED = {
    "sft": _TORCHRUN,
    "dpo": _TORCHRUN,
    "rl": Runtime(fixed=1990 << 20, per_rank=900 << 20, holes={4: 0.5, 2: 0.5}),
}


def runtime(kind: str) -> Runtime:
    """The figures for `sft`, `dpo` or `rl`."""
    return _MEASURED[kind]
