"""verl's platform interface for a machine without an accelerator."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

from common.cpu.heap import give_back, resident


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    return None


def _zero(*_args: Any, **_kwargs: Any) -> int:
    return 0


def _memory_info(_device: Any = None) -> tuple[int, int]:
    """(free, total) bytes of host memory, in the form of ``torch.cuda.mem_get_info``."""
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _device_module() -> types.ModuleType:
    """The part of ``torch.cuda`` that verl calls, answered for the host (see verl/utils/device.py)."""
    module = types.ModuleType("verl_training_cpu_device")
    members: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: torch.device("cpu"),
        "mem_get_info": _memory_info,
        "memory_allocated": resident,
        "max_memory_allocated": resident,
        "memory_reserved": resident,
        "max_memory_reserved": resident,
        "get_rng_state": torch.get_rng_state,
        "set_rng_state": torch.set_rng_state,
        "manual_seed": torch.manual_seed,
        "manual_seed_all": torch.manual_seed,
        "Event": torch.cpu.Event if hasattr(torch.cpu, "Event") else None,
        "Stream": torch.cpu.Stream,
        "current_stream": torch.cpu.current_stream,
        "stream": torch.cpu.stream,
        "synchronize": _nothing,
        "set_device": _nothing,
        "empty_cache": give_back,
        "ipc_collect": _nothing,
        "reset_peak_memory_stats": _nothing,
        "memory_stats": lambda *_a, **_k: {},
        "memory_summary": lambda *_a, **_k: "",
        "get_device_name": lambda *_a, **_k: "cpu",
        "utilization": _zero,
    }
    for name, value in members.items():
        setattr(module, name, value)
    return module


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """Host CPU as verl's device: gloo for collectives, shared memory for weight transfer.

    Ray is told of "GPU" resources that stand for training processes, because verl's placement
    groups ask for that resource by name (``ray_resource_name``).
    """

    _module = _device_module()

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> types.ModuleType:
        return self._module

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        # verl calls `.to(get_device_id())`; an int would mean a CUDA index.
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        return None

    def synchronize(self, device_index: int | None = None) -> None:
        return None

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        return None

    def empty_cache(self) -> None:
        give_back()

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        return None

    def profiler_stop(self) -> None:
        return None

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> Any:
        return None
