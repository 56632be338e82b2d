"""Run a program that does not outlive this process, even where that is killed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

# Its input ends when the process that holds the other end does; a signal handler would not see a SIGKILL.
_GUARD = """
import os, signal, sys
group = sys.stdin.readline()
sys.stdin.read()
if group:
    os.killpg(int(group), signal.SIGKILL)
"""


def run(words: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run`, with *words* and all that they start in a process group that ends with this process.

    Raises:
        OSError: the program cannot be started.
    """
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    ) as guard:
        child = subprocess.Popen(words, start_new_session=True, **how)
        assert guard.stdin is not None
        guard.stdin.write(f"{child.pid}\n")
        guard.stdin.flush()
        output, errors = child.communicate()
        guard.kill()
    return subprocess.CompletedProcess(words, child.returncode, output, errors)
