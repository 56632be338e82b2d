"""Where the processes of a run are: one text file with the Python stacks of all of them."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import psutil

from common.data_utils.atomic import write_text
from common.launcher import processes

SECONDS_EACH = 10
# Ray's own daemons are C++ or say nothing about the training.
_UNINTERESTING = (
    "raylet",
    "gcs_server",
    "log_monitor.py",
    "dashboard/",
    "runtime_env/agent",
    "common.gpu_sampler",
)


def of_run(tag: str) -> list[psutil.Process]:
    """The Python processes of the run *tag*, forked ones too: they keep the environment that they were forked with."""
    own = psutil.Process()
    found = []
    for process in processes.tagged(tag):
        try:
            words = " ".join(process.cmdline())
            if process.pid == own.pid or not words or any(part in words for part in _UNINTERESTING):
                continue
            if "python" in Path(process.exe()).name:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return sorted(found, key=lambda process: process.pid)


def _head(process: psutil.Process) -> str:
    with process.oneshot():
        times = process.cpu_times()
        command = " ".join(process.cmdline())
        return (
            f"process {process.pid} ({process.name()}), {process.status()}, "
            f"{times.user + times.system:.0f} s of CPU, {process.memory_info().rss / 2**30:.2f} GiB\n"
            f"  {command[:300]}"
        )


def py_spy() -> str:
    """py-spy of this environment."""
    return str(Path(sysconfig.get_path("scripts")) / "py-spy")


def stack(pid: int) -> str:
    """The Python stacks of one process, or the line that says why there are none."""
    # Without pausing it: a process that somebody stopped could not be paused and let go again.
    command = [py_spy(), "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS_EACH, check=False
        )
    except FileNotFoundError:
        return f"no stacks: {command[0]} is missing (./setup_env.sh installs it)"
    except subprocess.TimeoutExpired:
        return f"no stacks: py-spy took more than {SECONDS_EACH} s"
    if done.returncode == 0:
        return done.stdout.rstrip()
    reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
    hint = ""
    if "ermission" in done.stderr or "Operation not permitted" in done.stderr:
        hint = " (as another user than root: sysctl kernel.yama.ptrace_scope=0, or docker run --cap-add=SYS_PTRACE)"
    return f"no stacks: {reason}{hint}"


def save(tag: str, path: Path, why: str) -> tuple[int, list[str]]:
    """Write the stacks of the run *tag* to *path*.

    Returns:
        How many processes there were, and which of them are stopped (`SIGSTOP`, a debugger), as `pid name`.
    """
    parts, stopped = [why], []
    found = of_run(tag)
    for process in found:
        try:
            head = _head(process)
            if process.status() == psutil.STATUS_STOPPED:
                stopped.append(f"{process.pid} {process.name()}")
        except psutil.Error:
            continue
        parts.append(f"{head}\n{stack(process.pid)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n\n".join(parts) + "\n")
    return len(found), stopped
