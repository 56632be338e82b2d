"""Freed heap goes back to the system when a process has grown, and only then."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from common.cpu import heap

# Every second of many blocks is freed, and a last one keeps the heap's end in use, as a training step does.
FRAGMENT = """
import ctypes, os
from common.cpu import heap
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.memset.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(1 << 20) for _ in range(200)]
for block in blocks: libc.memset(block, 1, 1 << 20)
for block in blocks[::2]: libc.free(block)
before = heap.resident()
heap.give_back()
print(before - heap.resident())
"""


def test_holes_in_the_heap_are_given_back() -> None:
    kept = {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "68719476736",
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", FRAGMENT], env=kept, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 90 << 20


def test_the_first_batch_and_a_step_that_has_grown_trim(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        def optimizer_zero_grad(self) -> None: ...

        def optimizer_step(self) -> str:
            return "norm"

    sizes, trims = iter([100, 119, 121, 110, 131, 133]), []
    monkeypatch.setattr(heap, "resident", lambda: next(sizes))
    monkeypatch.setattr(heap, "give_back", lambda: trims.append(1))
    heap.bounded_heap(SimpleNamespace(FSDPEngine=Engine))
    engine, counts = Engine(), []
    for _ in range(6):
        engine.optimizer_zero_grad()
        assert engine.optimizer_step() == "norm"
        counts.append(len(trims))
    # Once at the start; 100 is usual; 121 is over 120; then 110 is usual, and 133 over 132.
    assert counts == [1, 1, 2, 2, 2, 3]
