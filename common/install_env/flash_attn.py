"""flash-attn, where it can be had: a prebuilt wheel, else compiled when nvcc matches. Never fatal."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.check_env import gpu
from common.check_env.environment import REQUIREMENTS, requirement_lines
from common.install_env.steps import Steps

_INDEX = "https://wheels.astral.sh/simple/cu130/"
_WITHOUT = "verl runs with sdpa attention instead, slower and larger on long sequences"
_OLDEST = 8.0
"""The compute capability that flash-attn 2 starts at (Ampere)."""


def command(uv: str = "", python: str = sys.executable) -> list[str]:
    """The command that installs the prebuilt wheel, and nothing else, into an environment."""
    uv = uv or str(Path(python).with_name("uv"))
    index = os.environ.get("FLASH_ATTN_INDEX") or _INDEX
    # The index carries other packages under PyPI's names: only this one is taken from it.
    options = ["--no-deps", "--only-binary", ":all:", "--default-index", index]
    return [uv, "pip", "install", "--python", python, *options, f"flash-attn=={_pinned()}"]


def install(
    steps: Steps, uv: str, python: str, environ: Mapping[str, str], gpus: Sequence[gpu.Gpu], wanted: bool
) -> None:
    """Try to install it and say how that went."""
    steps.say("flash-attn (optional)")
    if not wanted:
        print(f"      left out (FLASH_ATTN=off): {_WITHOUT}")
        return
    capabilities = [each.compute_capability for each in gpus if each.compute_capability]
    if capabilities and max(capabilities) < _OLDEST:
        print(f"      left out, it needs an Ampere GPU or newer: {_WITHOUT}")
        return
    code, output = steps.attempt(command(uv, python), environ)
    if code != 0:
        steps.log.write(str(steps.failure(output, code)))
        problem = _cannot_compile(capabilities)
        if problem:
            print(f"      not installed (no wheel to be had, {problem}): {_WITHOUT}; {steps.log.path}")
            return
        print("      no prebuilt wheel; compiling it, up to an hour (FLASH_ATTN=off leaves it out)")
        if not _compile(steps, uv, python, environ, capabilities):
            print(f"      not installed, the compilation failed: {_WITHOUT}; {steps.log.path}")
            return
    # transformers takes an installed flash-attn for a working one, so one that does not import must go.
    code, output = steps.attempt([python, "-c", "import flash_attn.bert_padding, flash_attn_2_cuda"], environ)
    if code != 0:
        steps.run([uv, "pip", "uninstall", "--python", python, "flash-attn"], environ)
        print(f"      removed again, it does not import here: {_WITHOUT}; {steps.log.path}")


def nvcc_version() -> str:
    """The CUDA version of the nvcc on PATH or under CUDA_HOME; "" when there is none."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    program = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"release (\d+\.\d+)", done.stdout)
    return match.group(1) if match else ""


def _pinned() -> str:
    return next(version for _, version, _ in requirement_lines(REQUIREMENTS / "flash-attn.txt"))


def _cannot_compile(capabilities: Sequence[float]) -> str:
    if not capabilities:
        return "no GPU here to compile it for"
    nvcc, cuda = nvcc_version(), gpu.pinned_cuda()
    if nvcc.split(".")[0] != cuda.split(".")[0]:
        return f"nvcc {nvcc} does not match CUDA {cuda}" if nvcc else f"no nvcc of CUDA {cuda}"
    return ""


def _compile(
    steps: Steps, uv: str, python: str, environ: Mapping[str, str], capabilities: Sequence[float]
) -> bool:
    base = [uv, "pip", "install", "--python", python, "--no-deps"]
    if steps.attempt([*base, "--requirement", str(REQUIREMENTS / "flash-attn-build.txt")], environ)[0] != 0:
        return False
    # One compiler process takes up to 9 GB, and compiling for one GPU instead of four saves most of the hour.
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    jobs = max(1, min(os.cpu_count() or 1, int(memory / 9)))
    targets = ";".join(sorted({f"{int(each)}0" for each in capabilities if each >= _OLDEST}))
    environ = {"MAX_JOBS": str(jobs), "FLASH_ATTN_CUDA_ARCHS": targets, **environ}
    source = f"flash-attn=={_pinned().split('+')[0]}"
    return steps.attempt([*base, "--no-build-isolation", source], environ)[0] == 0
