"""Keeps a CPU run's heap from growing without end.

The launcher has glibc keep what is freed (MALLOC_TRIM_THRESHOLD_), so that every step's tensors find pages that are
there. But torch allocates by memalign, and with batches of changing lengths ever fewer holes fit: without this, SFT of
the small model grows from 5.5 to 8.2 GB in 30 steps, and GRPO from 8.2 to 11.9.
"""

from __future__ import annotations

import ctypes
from typing import Any

import psutil

GROWTH = 1.2
_LIBC = ctypes.CDLL(None)


def resident(_device: Any = None) -> int:
    """Resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


def give_back(_device: Any = None) -> None:
    """Return freed heap to the system, as ``torch.cuda.empty_cache`` returns freed device memory (glibc)."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim:
        trim(0)


def bounded_heap(transformer_impl: Any) -> None:
    """Return freed heap before the first training batch, and after a step when the process has grown by a fifth.

    What reading the model and asking the reference left free is of the wrong sizes for training.
    Upstream: ``FSDPEngine.optimizer_zero_grad``, which begins a batch, and ``optimizer_step``. verl's own
    ``empty_cache`` comes once a step in RL, in SFT only when it validates or saves. At every step it would cost time:
    25 steps of SFT took 95 and 99 s without, 101 and 126 s so.
    """
    engine = transformer_impl.FSDPEngine
    original, begin = engine.optimizer_step, engine.optimizer_zero_grad
    began = False
    usual = 0  # bytes after a step that began with a heap just trimmed

    def optimizer_zero_grad(self: Any) -> Any:
        nonlocal began
        if not began:
            give_back()
            began = True
        return begin(self)

    def optimizer_step(self: Any) -> Any:
        nonlocal usual
        result = original(self)
        now = resident()
        if not usual:
            usual = now
        elif now > GROWTH * usual:
            give_back()
            usual = 0
        return result

    engine.optimizer_zero_grad, engine.optimizer_step = optimizer_zero_grad, optimizer_step
