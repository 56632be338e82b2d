"""Hostile programs: every one is contained within its limit plus two seconds, and the host is unharmed.

All run twice: with namespaces, and as in a container that forbids them.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import hostile
import pytest

from common.reward_functions.sandbox import Limits, Outcome, run_python

LIMITS = Limits(wall_seconds=2.0, cpu_seconds=2, memory_mb=256, file_mb=8, output_bytes=1 << 16, processes=6)
PATIENT = dataclasses.replace(
    LIMITS, wall_seconds=30.0
)  # for programs that end by themselves, on a busy machine
SPARE = 2.0  # seconds over the limit that the issue allows

NAMESPACES = pytest.mark.parametrize("namespaces", [True, False], ids=["namespaces", "no namespaces"])


def contained(program: str, stdin: str = "", *, namespaces: bool, limits: Limits = PATIENT) -> Outcome:
    """Run a hostile program; it must end in time and leave no process behind."""
    begin = time.monotonic()
    outcome = run_python(program, stdin, limits=limits, namespaces=namespaces)
    assert time.monotonic() - begin <= limits.wall_seconds + SPARE
    assert survivors() == []
    return outcome


def survivors() -> list[str]:
    """Command lines of sandboxed processes that still live; a dying one gets half a second."""
    for _ in range(10):
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:
                    continue
                if "program.py" in line and "-I -B" in line:
                    found.append(line)
        if not found:
            return []
        time.sleep(0.05)
    return found


@pytest.mark.slow
@NAMESPACES
def test_endless_loop_ends_at_the_limit(namespaces: bool) -> None:
    outcome = contained(hostile.ENDLESS_LOOP, namespaces=namespaces, limits=LIMITS)
    assert outcome.status in ("timeout", "exit")
    assert outcome.exit_code != 0


@pytest.mark.slow
@NAMESPACES
def test_sleeping_program_ends_at_the_wall_clock(namespaces: bool) -> None:
    assert contained(hostile.SLEEP, namespaces=namespaces, limits=LIMITS).status == "timeout"


@pytest.mark.slow
@NAMESPACES
def test_fork_bomb_is_limited(namespaces: bool) -> None:
    outcome = contained(hostile.FORK_BOMB, namespaces=namespaces, limits=LIMITS)
    forks = int(outcome.stdout.split()[2])
    assert forks <= LIMITS.processes


@pytest.mark.slow
@NAMESPACES
def test_thread_bomb_is_limited(namespaces: bool) -> None:
    outcome = contained(hostile.THREAD_BOMB, namespaces=namespaces)
    assert outcome.status == "ok"
    assert int(outcome.stdout.split()[2]) < 100


@NAMESPACES
def test_ten_gigabytes_are_refused(namespaces: bool) -> None:
    outcome = contained(hostile.ALLOCATION, namespaces=namespaces)
    assert "refused" in outcome.stdout
    assert int(outcome.stdout.split()[2]) <= LIMITS.memory_mb


def test_memory_of_all_processes_together_is_limited() -> None:
    outcome = contained(hostile.ALLOCATION_BY_CHILDREN, namespaces=True)
    assert outcome.status == "memory"


@NAMESPACES
def test_infinite_output_is_cut(namespaces: bool) -> None:
    outcome = contained(hostile.INFINITE_OUTPUT, namespaces=namespaces)
    assert outcome.status == "output"
    assert len(outcome.stdout) <= LIMITS.output_bytes


def test_disk_cannot_be_filled() -> None:
    outcome = contained(hostile.FILL_DISK, namespaces=True)
    assert "refused" in outcome.stdout
    assert int(outcome.stdout.split()[2]) <= LIMITS.file_mb


@NAMESPACES
def test_files_outside_are_not_written(namespaces: bool, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    victim.chmod(0o666)
    targets = [str(victim), str(tmp_path), "/tmp", "/dev/shm", "/var/tmp", "/etc/passwd", str(Path.home())]
    outcome = contained(hostile.WRITE_OUTSIDE, " ".join(targets), namespaces=namespaces)
    assert outcome.stdout == "done\n"
    assert victim.read_text() == "precious"
    assert not (tmp_path / "escaped").exists()


@NAMESPACES
def test_files_outside_are_not_read(namespaces: bool, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    secret = tmp_path / "secret.txt"
    secret.write_text("password")
    secret.chmod(0o666)
    targets = [
        str(secret),
        str(tmp_path),
        "/etc/passwd",
        "/proc/self/environ",
        str(Path(__file__).parents[2]),
    ]
    assert contained(hostile.READ_OUTSIDE, " ".join(targets), namespaces=namespaces).stdout == "done\n"


@NAMESPACES
def test_network_is_closed(namespaces: bool) -> None:
    with socket.socket() as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mailbox:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        mailbox.bind(("127.0.0.1", listener.getsockname()[1]))
        outcome = contained(hostile.NETWORK, str(listener.getsockname()[1]), namespaces=namespaces)
        mailbox.settimeout(0.1)
        with pytest.raises(TimeoutError):
            mailbox.recv(1)
    assert outcome.stdout == "done\n"


@NAMESPACES
def test_os_exit_is_seen_as_an_end(namespaces: bool) -> None:
    outcome = contained(hostile.OS_EXIT, namespaces=namespaces)
    assert (outcome.status, outcome.stdout) == ("ok", "4\n")


@NAMESPACES
def test_parent_and_bystander_cannot_be_killed(namespaces: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        try:
            outcome = contained(hostile.KILL_PARENT, f"{os.getpid()} {bystander.pid}", namespaces=namespaces)
            assert bystander.poll() is None
        finally:
            bystander.kill()
    assert "KILLED" not in outcome.stdout
    assert outcome.status in ("ok", "exit", "timeout")


@NAMESPACES
def test_environment_holds_no_secret(namespaces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "sesame-opens")
    outcome = contained(hostile.READ_ENVIRONMENT, namespaces=namespaces)
    assert outcome.stdout.endswith("done\n")
    assert "sesame-opens" not in outcome.stdout
    assert "READ /proc/" not in outcome.stdout


@NAMESPACES
def test_a_new_session_does_not_escape(namespaces: bool) -> None:
    outcome = contained(hostile.ESCAPE_GROUP, namespaces=namespaces)
    assert outcome.exit_code in (0, 1)


@NAMESPACES
def test_debugging_and_mounting_are_refused(namespaces: bool) -> None:
    outcome = contained(hostile.DEBUG_OTHERS, str(os.getpid()), namespaces=namespaces)
    assert outcome.stdout == "PTRACE -1\nUNSHARE -1\nMOUNT -1\n"
