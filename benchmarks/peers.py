"""Environments of their own for the programs we compare ourselves with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from common.cpu.model import cache_root

TRL_PACKAGES = ["trl==1.16.0", "torch==2.11.0", "transformers==5.9.0"]


def trl_python() -> Path:
    """Python of the environment that holds the newest TRL."""
    return peer_python("trl-1.16.0", TRL_PACKAGES)


def peer_python(name: str, packages: list[str]) -> Path:
    """Python of a virtual environment that holds *packages* and nothing of ours; made once, then reused."""
    folder = cache_root() / "peers" / name
    python, stamp = folder / "bin" / "python", folder / "packages.txt"
    wanted = "\n".join(packages)
    if not (stamp.is_file() and stamp.read_text() == wanted):
        uv = [sys.executable, "-m", "uv"]
        subprocess.run(
            [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True
        )
        install = ["pip", "install", "--quiet", "--compile-bytecode", "--python", str(python)]
        subprocess.run([*uv, *install, *packages], check=True)
        stamp.write_text(wanted)
    return python
