"""The machine: GPUs and driver, memory, shared memory, disk, compilers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from common.check_env import gpu
from common.check_env.environment import ROOT, Stamp
from common.check_env.finding import ERROR, OK, WARNING, Finding
from common.install_env.flash_attn import nvcc_version
from common.system import existing

_SHM_NEEDED_GIB = {"cpu": 1.0, "gpu": 8.0}
_DISK_NEEDED_GB = 10.0
_RAM_NEEDED_GIB = {"cpu": 12.0, "gpu": 32.0}


def devices(
    driver: gpu.Driver | None, held: Stamp, torch_facts: dict[str, object] | None
) -> Iterator[Finding]:
    """GPUs and driver against what is installed."""
    section = "devices"
    if driver is None or (not driver.gpus and not driver.problem):
        if held.kind == "gpu":
            fix = "run on a machine with an NVIDIA GPU and driver, or ./setup_env.sh --cpu"
            yield Finding(section, "gpu", WARNING, "none here, the GPU set is installed", fix)
        else:
            yield Finding(section, "gpu", OK, "none: training runs on the CPU")
        return
    if driver.problem:
        fix = "reinstall the driver; in a container start it with --gpus all"
        yield Finding(section, "driver", ERROR if held.kind == "gpu" else WARNING, driver.problem, fix)
        return
    cuda = gpu.pinned_cuda()
    problem = gpu.misfit(driver, cuda)
    detail = f"{driver.version}, CUDA up to {driver.cuda or 'unknown'}"
    if problem:
        yield Finding(section, "driver", ERROR if held.kind == "gpu" else WARNING, detail, problem)
    else:
        yield Finding(section, "driver", OK, f"{detail}; torch is built for {cuda}")
    for each in driver.gpus:
        total, free = each.memory_total, each.memory_free
        memory = (
            "" if total is None or free is None else f", {free / 1024:.1f} of {total / 1024:.1f} GiB free"
        )
        busy = total is not None and free is not None and free < 0.8 * total
        fix = "nvidia-smi shows which process holds the memory" if busy else ""
        yield Finding(section, f"gpu {each.index}", WARNING if busy else OK, f"{each.name}{memory}", fix)
    if held.kind == "cpu":
        fix = "./setup_env.sh --gpu installs the GPU set"
        yield Finding(section, "set", WARNING, "GPUs are here, the CPU set is installed", fix)
    elif torch_facts and not torch_facts.get("error"):
        seen, built = torch_facts.get("gpus", 0), torch_facts.get("cuda", "")
        if not seen:
            hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
            fix = (
                f"CUDA_VISIBLE_DEVICES={hidden!r} hides them" if hidden in ("", "-1") else "see driver above"
            )
            yield Finding(section, "torch", ERROR, f"sees no GPU (built for CUDA {built or 'none'})", fix)
        else:
            yield Finding(section, "torch", OK, f"sees {seen} GPUs, built for CUDA {built}")


def memory(kind: str) -> Iterator[Finding]:
    """CPU cores, RAM and /dev/shm."""
    section = "machine"
    total, free = _ram()
    status = OK if total >= _RAM_NEEDED_GIB[kind] else WARNING
    fix = "" if status == OK else f"training wants {_RAM_NEEDED_GIB[kind]:.0f} GiB: lower the batch size"
    cores = len(os.sched_getaffinity(0))
    yield Finding(section, "cpu and ram", status, f"{cores} cores, {free:.1f} of {total:.1f} GiB free", fix)
    try:
        size = shutil.disk_usage("/dev/shm").total / 2**30
    except OSError:
        yield Finding(section, "/dev/shm", ERROR, "missing", "mount a tmpfs there; docker: --shm-size=16g")
        return
    wanted = _SHM_NEEDED_GIB[kind]
    status = OK if size >= wanted else ERROR if size < 0.25 else WARNING
    fix = (
        ""
        if status == OK
        else f"Ray, NCCL and DataLoaders want {wanted:g} GiB; docker: --shm-size=16g or --ipc=host"
    )
    yield Finding(section, "/dev/shm", status, f"{size:.1f} GiB", fix)


def disk() -> Iterator[Finding]:
    """Free space where checkpoints and temporary files go."""
    places = {"outputs": ROOT / "outputs", "temporary files": Path(os.environ.get("TMPDIR", "/tmp"))}
    seen: set[int] = set()
    for name, path in places.items():
        place = existing(path)
        device = place.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        usage = shutil.disk_usage(place)
        status = OK if usage.free >= _DISK_NEEDED_GB * 1e9 else WARNING if usage.free >= 1e9 else ERROR
        fix = (
            ""
            if status == OK
            else "free some space, or set OUTPUT_DIR to another disk (a checkpoint takes GBs)"
        )
        detail = f"{usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB free at {place}"
        yield Finding("disk", name, status, detail, fix)
        if not os.access(place, os.W_OK):
            yield Finding(
                "disk",
                f"{name} folder",
                ERROR,
                f"{place} is not writable",
                "fix its owner, or set OUTPUT_DIR",
            )


def compilers(kind: str) -> Iterator[Finding]:
    """A C compiler (Triton and torch.compile call it at run time) and nvcc."""
    found = next((path for path in map(shutil.which, ("gcc", "cc", "clang")) if path), None)
    if found:
        yield Finding("machine", "c compiler", OK, found)
    else:
        fix = "sudo apt install build-essential (Triton and torch.compile call it at run time)"
        yield Finding("machine", "c compiler", WARNING, "none", fix)
    if kind == "gpu":
        version = nvcc_version()
        if not version:
            yield Finding("machine", "nvcc", OK, "none (needed only to compile flash-attn)")
        elif version.split(".")[0] != gpu.pinned_cuda().split(".")[0]:
            fix = f"extensions compiled here will not load; use CUDA {gpu.pinned_cuda()}'s, or compile none"
            yield Finding(
                "machine", "nvcc", WARNING, f"{version}, torch is built for {gpu.pinned_cuda()}", fix
            )
        else:
            yield Finding("machine", "nvcc", OK, version)


def _ram() -> tuple[float, float]:
    """Total and available RAM in GiB, the limit of the container taken into account."""
    values = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, rest = line.partition(":")
        values[key] = int(rest.split()[0]) / 2**20
    total, free = values["MemTotal"], values["MemAvailable"]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            most = int(Path(limit).read_text()) / 2**30
            now = int(Path(used).read_text()) / 2**30
        except (OSError, ValueError):
            continue
        if most < total:
            return most, max(0.0, min(free, most - now))
    return total, free
