"""Find and end the processes of one run, and only those.

Every process a run starts inherits ``VERL_TRAINING_RUN=<tag>``; Ray's daemons and workers too, when this run
started Ray. A cluster that was there before does not carry the tag and is left alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import psutil

TAG = "VERL_TRAINING_RUN"


def tagged(tag: str, variable: str = TAG) -> list[psutil.Process]:
    """Processes of this user that carry *tag* in *variable*, this one and its ancestors excluded."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in own and process.environ().get(variable) == tag:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def end_tagged(tag: str, grace: float = 5.0, variable: str = TAG) -> int:
    """Terminate, then kill, what carries *tag*; returns how many there were.

    Args:
        grace: seconds between SIGTERM and SIGKILL.
        variable: environment variable that holds the tag.
    """
    ended: set[int] = set()
    # Ray restarts workers while it goes down, so look again until nothing is left.
    for _ in range(5):
        alive = [p for p in tagged(tag, variable) if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not alive:
            break
        ended |= {p.pid for p in alive}
        for process in alive:
            _signal(process.terminate)
        _, alive = psutil.wait_procs(alive, timeout=grace)
        for process in alive:
            _signal(process.kill)
        psutil.wait_procs(alive, timeout=grace)
    return len(ended)


def _signal(send: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.Error):
        send()


def is_supervisor(pid: int | None, tag: str) -> bool:
    """True when *pid* is alive and is the supervisor of the attempt *tag*."""
    if not pid:
        return False
    try:
        return tag in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
