"""flash-attn, where it can be had: a prebuilt wheel, else compiled when nvcc matches. Never fatal."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping

from common.check_env import gpu
from common.check_env.environment import REQUIREMENTS, requirement_lines
from common.install_env.steps import Steps

_INDEX = "https://wheels.astral.sh/simple/cu130/"
_WITHOUT = "verl runs with sdpa attention instead, slower and larger on long sequences"


def install(steps: Steps, uv: str, python: str, environ: Mapping[str, str], wanted: bool) -> None:
    """Try to install it and say how that went."""
    steps.say("flash-attn (optional)")
    if not wanted:
        print(f"      left out (FLASH_ATTN=off): {_WITHOUT}")
        return
    base = [uv, "pip", "install", "--python", python, "--no-deps"]
    index = environ.get("FLASH_ATTN_INDEX") or _INDEX
    # The index carries other packages under PyPI's names: only this one is taken from it.
    wheel = [*base, "--only-binary", ":all:", "--default-index", index]
    code, output = steps.attempt([*wheel, "--requirement", str(REQUIREMENTS / "flash-attn.txt")], environ)
    if code != 0:
        nvcc = nvcc_version()
        if nvcc.split(".")[0] != gpu.pinned_cuda().split(".")[0]:
            have = f"nvcc is {nvcc}" if nvcc else "no nvcc"
            reason = steps.failure(output, code)
            print(f"      not installed: {_WITHOUT}")
            print(f"      no wheel from {index}, and {have} ({gpu.pinned_cuda()} would do); {steps.log.path}")
            steps.log.write(str(reason))
            return
        print("      no prebuilt wheel; compiling it, up to an hour (FLASH_ATTN=off leaves it out)")
        code, output = _compile(steps, base, environ)
        if code != 0:
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


def _compile(steps: Steps, base: list[str], environ: Mapping[str, str]) -> tuple[int, str]:
    version = next(version for _, version, _ in requirement_lines(REQUIREMENTS / "flash-attn.txt")).split(
        "+"
    )[0]
    code, output = steps.attempt(
        [*base, "--requirement", str(REQUIREMENTS / "flash-attn-build.txt")], environ
    )
    if code != 0:
        return code, output
    # A compiler process takes up to 9 GB here (flash-attn's own README warns of it).
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    jobs = max(1, min(os.cpu_count() or 1, int(memory / 9)))
    environ = {"MAX_JOBS": str(jobs), **environ}
    return steps.attempt([*base, "--no-build-isolation", f"flash-attn=={version}"], environ)
