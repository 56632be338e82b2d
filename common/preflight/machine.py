"""What the preflight knows of the machine, gathered once, so that the checks themselves are pure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from common.check_env import gpu, services
from common.launcher import device
from common.system import existing

_SHARED_FILESYSTEMS = (
    "nfs",
    "lustre",
    "gpfs",
    "ceph",
    "fuse",
    "cifs",
    "smb",
    "beegfs",
    "9p",
    "wekafs",
    "glusterfs",
)


def filesystem_of(path: Path) -> str:
    """Type of the filesystem of *path* by /proc/mounts, e.g. "ext4"; "" where there is no such list."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    real = os.path.realpath(existing(path))
    best, kind = -1, ""
    for line in lines:
        place, type_ = line.split()[1:3]
        under = real == place or real.startswith(place.rstrip("/") + "/")
        if under and len(place) >= best:
            best, kind = len(place), type_
    return kind


@dataclass(frozen=True)
class Machine:
    """This machine, or one that a test describes.

    Attributes:
        cores: usable processor cores.
        ram_total, ram_free: bytes of RAM.
        shm_free: bytes of /dev/shm that are free; -1 when there is none.
        gpus: the GPUs that CUDA_VISIBLE_DEVICES leaves visible; memory in MiB.
        environment: variables that the run inherits.
        importable: tells whether a top-level package is installed.
        disk_free: bytes free where a path will be written.
        port_free: tells whether this machine can listen on a port.
        filesystem: type of the filesystem that holds a path, "" when not known.
    """

    cores: int
    ram_total: int
    ram_free: int
    shm_free: int
    gpus: list[gpu.Gpu]
    environment: Mapping[str, str] = field(default_factory=dict)
    importable: Callable[[str], bool] = lambda name: find_spec(name) is not None
    disk_free: Callable[[Path], int] = lambda path: shutil.disk_usage(existing(path)).free
    port_free: Callable[[int], bool] = services.port_free
    filesystem: Callable[[Path], str] = filesystem_of

    def shared(self, path: Path) -> bool:
        """True when *path* may lie on a filesystem that other nodes see too."""
        kind = self.filesystem(path)
        return not kind or any(name in kind for name in _SHARED_FILESYSTEMS)


def this_machine(environment: Mapping[str, str], on_gpu: bool) -> Machine:
    """Look at the machine; GPUs are asked for only when the run uses them."""
    import psutil

    try:
        shm = shutil.disk_usage("/dev/shm").free
    except OSError:
        shm = -1
    return Machine(
        cores=device.cores(),
        ram_total=psutil.virtual_memory().total,
        ram_free=psutil.virtual_memory().available,
        shm_free=shm,
        gpus=visible_gpus(environment) if on_gpu else [],
        environment=environment,
    )


def visible_gpus(environment: Mapping[str, str]) -> list[gpu.Gpu]:
    """GPUs by nvidia-smi that CUDA_VISIBLE_DEVICES (numbers; UUIDs count, but are not told apart) leaves visible."""
    driver = gpu.query()
    found = driver.gpus if driver else []
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    wanted = [part.strip() for part in visible.split(",") if part.strip()]
    if any(part == "-1" for part in wanted):
        wanted = wanted[: wanted.index("-1")]
    if all(part.isdigit() for part in wanted):
        return [each for part in wanted for each in found if each.index == part]
    return found[: len(wanted)]
