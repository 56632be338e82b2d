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


def end_with_parent(parent: int) -> None:
    """Ask the kernel to end this process when its parent ends, even by SIGKILL (Linux only).

    Args:
        parent: its process id; where that has ended already, so does this process, with exit code 143.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)


def end_well() -> NoReturn:
    """End this process with exit code 0, what was registered with `atexit` done, and take nothing apart.

    Python's own way of ending frees every object of every module first: half a second where torch was imported.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
