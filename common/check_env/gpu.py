"""What nvidia-smi says about GPUs and driver, and whether the pinned CUDA can use them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field

from common.check_env.environment import REQUIREMENTS, requirement_lines

_FIELDS = ("index", "name", "driver_version", "memory.total", "memory.free", "compute_cap")
_MIN_COMPUTE_CAPABILITY = 7.5
"""The oldest GPUs that CUDA 13 has code for (NVIDIA dropped Pascal and Volta in it)."""


@dataclass(frozen=True)
class Gpu:
    """One GPU. Memory is in MiB; None stands for what the driver does not tell."""

    index: str
    name: str
    memory_total: int | None
    memory_free: int | None
    compute_capability: float | None


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver: its version, the newest CUDA it runs, its GPUs; `problem` when nvidia-smi failed."""

    version: str = ""
    cuda: str = ""
    gpus: list[Gpu] = field(default_factory=list)
    problem: str = ""


def query(timeout: float = 20.0) -> Driver | None:
    """Ask nvidia-smi; None on a machine that has none. `timeout` in seconds, per call."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    fields = list(_FIELDS)
    code, output = _run(
        [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"], timeout
    )
    if code != 0 and "compute_cap" in output:  # drivers before R470 do not know the field
        fields.remove("compute_cap")
        code, output = _run(
            [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"], timeout
        )
    if code != 0:
        return Driver(problem=" ".join(output.split())[:200] or f"nvidia-smi ended with code {code}")
    rows = [
        dict(zip(fields, (cell.strip() for cell in line.split(",")), strict=False))
        for line in output.splitlines()
    ]
    rows = [row for row in rows if row.get("index", "").isdigit()]
    _, header = _run([program], timeout)
    # Newer drivers print "CUDA UMD Version".
    match = re.search(r"CUDA(?: [A-Z]+)? Version:\s*(\d+\.\d+)", header)
    return Driver(
        version=rows[0].get("driver_version", "") if rows else "",
        cuda=match.group(1) if match else "",
        gpus=[
            Gpu(
                row["index"],
                row.get("name", ""),
                _whole(row.get("memory.total")),
                _whole(row.get("memory.free")),
                _decimal(row.get("compute_cap")),
            )
            for row in rows
        ],
    )


def pinned_cuda() -> str:
    """The CUDA version that the pinned torch is built for, such as 13.0."""
    for name, version, _ in requirement_lines(REQUIREMENTS / "lock-gpu-vllm.txt"):
        if name == "cuda-toolkit":
            return ".".join(version.split(".")[:2])
    raise LookupError("requirements/lock-gpu-vllm.txt does not pin cuda-toolkit")


def misfit(driver: Driver, cuda: str) -> str:
    """Why the GPUs cannot run programs built for this CUDA, with what to do; "" when they can."""
    # A driver runs every CUDA of its own major version (minor version compatibility).
    if driver.cuda and int(driver.cuda.split(".")[0]) < int(cuda.split(".")[0]):
        return (
            f"driver {driver.version} runs CUDA up to {driver.cuda}, the pinned torch is built for "
            f"CUDA {cuda}: update the driver to 580 or newer"
        )
    known = [gpu for gpu in driver.gpus if gpu.compute_capability is not None]
    old = [gpu for gpu in known if (gpu.compute_capability or 0) < _MIN_COMPUTE_CAPABILITY]
    if known and len(old) == len(known):
        return (
            f"{old[0].name} has compute capability {old[0].compute_capability}, "
            f"CUDA {cuda} needs {_MIN_COMPUTE_CAPABILITY} or newer (Turing, Ampere, ...)"
        )
    return ""


def _run(command: list[str], timeout: float) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return 124, f"nvidia-smi did not answer within {timeout:g} s"
    except OSError as error:
        return 126, f"nvidia-smi does not run: {error}"
    return done.returncode, done.stdout + done.stderr


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _decimal(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"\d+(\.\d+)?", text) else None
