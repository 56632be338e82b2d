"""Which device a run uses: the GPUs that are there, or the CPU.

Standard library only: it runs before the environment is made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field

from common.launcher.errors import UserError


@dataclass(frozen=True)
class Device:
    """``kind`` is ``gpu`` or ``cpu``; ``count`` the visible GPUs or the usable cores."""

    kind: str
    count: int
    reason: str
    notes: list[str] = field(default_factory=list)


def visible_gpus() -> int:
    """Number of GPUs a process started now would see (``nvidia-smi -L``, ``CUDA_VISIBLE_DEVICES``)."""
    smi = shutil.which("nvidia-smi")
    if not smi:
        return 0
    try:
        listing = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    present = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, sum(bool(part.strip()) and part.strip() != "-1" for part in visible.split(",")))


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose(wanted: str) -> Device:
    """Turn DEVICE=auto|gpu|cpu into what this machine has.

    Raises:
        UserError: ``gpu`` was asked for and none is visible.
    """
    if wanted == "cpu":
        return Device("cpu", 1, "DEVICE=cpu")
    gpus = visible_gpus()
    if gpus:
        return Device("gpu", gpus, "GPU found")
    if wanted == "gpu":
        raise UserError(
            "DEVICE=gpu, but nvidia-smi shows no GPU (CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}); use --device cpu or mend the driver"
        )
    return Device("cpu", 1, "no GPU found")


def assumed(wanted: str) -> Device:
    """DEVICE for a machine that may be another one: one GPU unless the CPU was asked for."""
    return Device("cpu" if wanted == "cpu" else "gpu", 1, f"DEVICE={wanted}")


def check_number(values: dict[str, str]) -> str:
    """N_GPUS, which must be a number by now.

    Raises:
        UserError: it is none.
    """
    wanted = values.get("N_GPUS", "1")
    if not wanted.isdigit() or int(wanted) < 1:
        raise UserError(f"N_GPUS='{wanted}' must be auto or a whole number above 0")
    return wanted


def check_count(values: dict[str, str], device: Device) -> None:
    """Refuse more GPUs (or CPU ranks) per node than there are.

    Raises:
        UserError: with both numbers.
    """
    wanted = check_number(values)
    if device.kind == "gpu" and int(wanted) > device.count and values.get("NNODES", "1") == "1":
        raise UserError(f"N_GPUS={wanted}, but this machine shows {device.count} GPU(s); lower N_GPUS")
    if device.kind == "cpu" and int(wanted) > cores():
        raise UserError(
            f"N_GPUS={wanted}: on the CPU this is the number of training processes, and there are "
            f"{cores()} cores; lower N_GPUS"
        )
