"""The outside of the sandbox: start a guarded process, feed it, cap its output, end it in time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from common.reward_functions.errors import RewardError

_GUARD = Path(__file__).with_name("guard.py")
_WATCH_SECONDS = 0.1  # how often the memory of all processes together is looked at
_PAGE = os.sysconf("SC_PAGE_SIZE")
# A reward process runs at most this many programs at once; verl starts 8 reward processes by default.
SLOTS = max(2, (os.cpu_count() or 2) // 8)
_probing = threading.Lock()
_slots = threading.BoundedSemaphore(SLOTS)


@dataclass(frozen=True)
class Limits:
    """Bounds of one program; memory: address space of each process, resident pages of all together."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 5
    memory_mb: int = 1024
    file_mb: int = 32
    output_bytes: int = 1 << 20
    processes: int = 8
    open_files: int = 64


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    status: ok (exit code 0), exit (another code), timeout, memory or output (ended for going over that
    limit).
    """

    status: str
    exit_code: int
    stdout: str
    stderr: str
    seconds: float


class SandboxError(RewardError):
    """The sandbox itself could not be set up; never raised for what a program does."""


def run_python(
    program: str,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    *,
    packages: bool = False,
    namespaces: bool | None = None,
) -> Outcome:
    """Run a Python program with every guard this machine allows.

    Args:
        program: source text.
        stdin: what it reads from standard input.
        files: text files beside it, by name.
        limits: bounds; the wall clock starts when the program's process is started.
        packages: let it import the installed packages (costs start-up time), not only the standard library.
        namespaces: None uses them where they work; False leaves them out, True insists.

    Raises:
        SandboxError: the sandbox could not be set up.
    """
    if namespaces is None:
        namespaces = _announced()
    flags = ["-I", "-B"] if packages else ["-I", "-B", "-S"]
    argv = [sys.executable if packages else _base_python(), *flags, "program.py"]
    return _run(argv, {**(files or {}), "program.py": program}, stdin, limits, namespaces)


def status(namespaces: bool | None = None) -> dict[str, str]:
    """Every guard and whether it holds here, found by setting them all up once."""
    if namespaces is None:
        try:
            return status(namespaces=True)
        except SandboxError:  # e.g. AppArmor grants the namespace and then forbids mounting in it
            return status(namespaces=False)
    outcome = _run([], {}, "", DEFAULT_LIMITS, namespaces)
    return dict(json.loads(outcome.stdout))


def _announced() -> bool:
    """Whether namespaces work here; says once per process which guards hold."""
    with _probing:  # threads that start together wait for one probe
        return _probe()


@functools.cache
def _probe() -> bool:
    guards = status()
    said = "; ".join(f"{name}: {state}" for name, state in guards.items())
    print(f"code sandbox: {said}", file=sys.stderr, flush=True)
    return guards["namespaces"].startswith("on")


def _base_python() -> str:
    return str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")


def _run(argv: list[str], files: Mapping[str, str], stdin: str, limits: Limits, namespaces: bool) -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix="reward-sandbox-"))
    try:
        folder.chmod(0o711)  # the program's account must get through, not look around
        work = folder / "work"
        work.mkdir(mode=0o755)
        job = {
            **dataclasses.asdict(limits),
            "argv": argv,
            "files": dict(files),
            "work": str(work),
            "prefixes": sorted({os.path.realpath(sys.base_prefix), os.path.realpath(sys.prefix)}),
            "env": {"PATH": "/usr/bin:/bin", "HOME": str(work), "TMPDIR": str(work), "LANG": "C.UTF-8",
                    "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            "probe": not argv,
            "namespaces": namespaces,
        }  # fmt: skip
        job_file = folder / "job.json"
        job_file.write_text(json.dumps(job), encoding="utf-8", errors="replace")
        job_file.chmod(0o600)
        with tempfile.TemporaryFile() as given, _slots:
            given.write(stdin.encode("utf-8", "replace"))
            given.seek(0)
            return _start(job_file, given, limits)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(job_file: Path, stdin: IO[bytes], limits: Limits) -> Outcome:
    status_read, status_write = os.pipe()
    begin = time.monotonic()
    try:
        process = subprocess.Popen(
            [_base_python(), "-I", "-S", str(_GUARD), str(job_file), str(status_write)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[status_write],
            start_new_session=True,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            cwd="/",
        )
    except BaseException:
        os.close(status_read)
        raise
    finally:
        os.close(status_write)
    verdict = ""
    try:
        verdict, texts = _watch(process, begin + limits.wall_seconds, limits)
    finally:
        _end(process)
        with os.fdopen(status_read, "rb") as stream:
            complaint = stream.read().decode("utf-8", "replace")
    if complaint:
        raise SandboxError(f"the code sandbox could not be set up: {complaint}")
    code = process.returncode
    name = verdict or ("ok" if code == 0 else "exit")
    stdout, stderr = (text.decode("utf-8", "replace") for text in texts)
    return Outcome(name, code, stdout, stderr, time.monotonic() - begin)


def _watch(process: subprocess.Popen[bytes], deadline: float, limits: Limits) -> tuple[str, list[bytes]]:
    """Collect output until the process ends or breaks a limit: (broken limit or '', [stdout, stderr])."""
    assert process.stdout is not None and process.stderr is not None
    texts: dict[int, bytearray] = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    verdict = ""
    with selectors.DefaultSelector() as selector:
        for descriptor in texts:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and not verdict:
            left = deadline - time.monotonic()
            if left <= 0:
                verdict = "timeout"
                break
            events = selector.select(min(left, _WATCH_SECONDS))
            for key, _ in events:
                chunk = os.read(key.fd, 65536)
                texts[key.fd] += chunk
                if not chunk:
                    selector.unregister(key.fd)
                if sum(map(len, texts.values())) > limits.output_bytes:
                    verdict = "output"
            if not events:
                if process.poll() is not None:
                    break  # something kept the pipes open; it dies with the process group
                if _resident(process.pid) > limits.memory_mb << 20:
                    verdict = "memory"
    if not verdict:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        verdict = "" if process.returncode is not None else "timeout"
    return verdict, [bytes(text[: limits.output_bytes]) for text in texts.values()]


def _resident(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    total, todo = 0, [pid]
    while todo:
        base = Path(f"/proc/{todo.pop()}")
        try:
            total += int((base / "statm").read_text().split()[1]) * _PAGE
            for task in (base / "task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, ValueError):  # ended in between
            continue
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole process group; with the guard dies its PID namespace and all in it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
