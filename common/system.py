"""What several parts ask of the operating system. Standard library only: the installer runs without the environment."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1


def existing(path: Path) -> Path:
    """*path* or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def end_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, even by SIGKILL (Linux only)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_well() -> NoReturn:
    """End this process with exit code 0, what was registered with `atexit` done, and take nothing apart.

    Python's own way of ending frees every object of every module first: half a second where torch was imported.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
