"""The environment to install into: is it there, does its Python fit, who else is at work on it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from common.check_env.environment import PYTHONS, ROOT
from common.install_env.options import Plan, SetupError
from common.system import existing

OWN = ROOT / ".venv"
"""The one environment that setup_env.sh makes itself, and may make anew."""

NEEDED_GB = {"cpu": 9, "gpu-vllm": 13, "gpu-sglang": 13}
"""Free disk for a fresh environment, in GB. Measured: 7.5 GB for the CPU set, 10.6 for vLLM's."""


def describe(prefix: Path, environ: Mapping[str, str]) -> str:
    """One phrase on which environment this is, for the first line of the output."""
    if environ.get("CONDA_PREFIX") and Path(environ["CONDA_PREFIX"]) == prefix:
        return f"{prefix} (active conda environment {environ.get('CONDA_DEFAULT_ENV', '')!r})"
    return f"{prefix} ({'.venv of this repository' if prefix == OWN else 'active virtualenv'})"


def must_create(prefix: Path) -> bool:
    """Whether the environment has to be made first. SetupError when it is there and unfit."""
    python = prefix / "bin" / "python"
    if Path(sys.prefix).resolve() == prefix.resolve() and python.exists():
        return False
    try:
        done = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
        version = (done.stdout or done.stderr).strip() if done.returncode == 0 else ""
    except OSError:
        version = ""
    low, high = PYTHONS[0], PYTHONS[-1]
    fitting = f"Python {low[0]}.{low[1]} to {high[0]}.{high[1]} is needed"
    if version:
        way = f"rm -r {prefix}" if prefix == OWN else "deactivate it, or activate another"
        raise SetupError(
            f"the environment {prefix} has {version}; {fitting}: {way}, and run ./setup_env.sh again"
        )
    if prefix != OWN:
        raise SetupError(
            f"the active environment {prefix} has no working bin/python; {fitting}: deactivate it"
        )
    return True


def check_machine(plan: Plan) -> None:
    """Refuse a machine for which there are no wheels."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux":
        raise SetupError(
            f"verl and vLLM are built for Linux, this is {system}: use a Linux machine, WSL2 or Docker"
        )
    if machine not in ("x86_64", "aarch64"):
        raise SetupError(
            f"there are no torch and vLLM wheels for {machine}: use an x86_64 or aarch64 machine"
        )
    needed = (2, 34) if plan.kind == "gpu" and plan.engine == "sglang" else (2, 28)
    name, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name == "glibc" and numbers and numbers < needed:
        raise SetupError(
            f"glibc {version} is too old for the wheels (>= {needed[0]}.{needed[1]}): use a newer Linux"
        )


def check_disk(prefix: Path, plan: Plan, fresh: bool) -> None:
    """Refuse to start what the disk cannot hold; one that is brought up to date needs 2 GB."""
    needed = NEEDED_GB["cpu" if plan.kind == "cpu" else f"gpu-{plan.engine}"] if fresh else 2
    place = existing(prefix)
    free = shutil.disk_usage(place).free / 1e9
    if free < needed:
        raise SetupError(
            f"not enough disk: {free:.1f} GB free at {place}, the {plan.kind} set needs {needed} GB: "
            "free some space, or activate an environment on another disk"
        )


def link_mode(prefix: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Tell uv to copy where hard links cannot work (cache on another disk): it warns otherwise."""
    cache = Path(
        environ.get("UV_CACHE_DIR") or Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv"
    )
    places = [existing(path) for path in (cache, prefix)]
    same = places[0].stat().st_dev == places[1].stat().st_dev
    return {} if same or "UV_LINK_MODE" in environ else {"UV_LINK_MODE": "copy"}


@contextmanager
def exclusive(prefix: Path) -> Iterator[None]:
    """Hold the environment against a second setup_env.sh; waits for one that is at work."""
    name = hashlib.sha256(str(prefix.resolve()).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"verl_training-setup-{os.getuid()}-{name}.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another setup_env.sh is at work on {prefix}: waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
