"""Runs the training command of one attempt and sees it to its end.

    python -m common.launcher.supervise --run-dir DIR --tag TAG -- COMMAND ARG ...

The command gets a session of its own. Its output goes to the terminal and to the attempt's console log.
Ctrl-C, SIGTERM and a closed terminal stop the command and the Ray processes that it started, and nothing
else. ``run.json`` always tells what is going on. The exit code is the command's own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from io import RawIOBase
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from common.launcher import processes, runs
from common.launcher.errors import UserError, exit_with
from common.launcher.summary import print_failure, print_summary
from common.system import end_with_parent

STOP_GRACE_SECONDS = 20.0
WATCHER_GRACE_SECONDS = 10.0
# The webhook's address is for the watcher alone.
WATCHER_SECRETS = ("WATCH_WEBHOOK",)
GPU_SAMPLE_SECONDS = 2.0
UNWRITTEN_CHUNKS = 256  # of 64 KiB at most


class Stopper:
    """Turns stop signals into an orderly end: SIGINT first, then SIGTERM and SIGKILL on a second one."""

    def __init__(self) -> None:
        self.signal: int = 0
        self.count = 0
        self.command: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        again, self.signal = bool(self.signal), self.signal or number
        if self.command is None or self.command.poll() is not None:
            return
        say("stopping now" if again else "stopping (once more to force) ...")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.command.pid, signal.SIGKILL if again else signal.SIGINT)


def say(text: str) -> None:
    """A line of ours, to stderr; a closed terminal is no reason to fail."""
    with contextlib.suppress(OSError):
        print(f"\n[verl_training] {text}", file=sys.stderr, flush=True)


def pump(source: BinaryIO, log: RawIOBase, unwritten: deque[bytes]) -> None:
    """Copy *source* to *log* and to stdout until it ends; each survives the other's end.

    Args:
        unwritten: takes what the log could not (a full disk): the reason of a failure comes last.
    """
    terminal = True
    while chunk := os.read(source.fileno(), 65536):
        rest = chunk
        try:
            while rest and not unwritten:
                rest = rest[log.write(rest) or 0 :]
        except OSError as error:
            say(f"the console log cannot be written ({error.strerror}): what follows is on the terminal only")
        if rest:
            unwritten.append(rest)
        if terminal:
            try:
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
            except OSError:
                terminal = False


def start_gpu_sampler(folder: Path) -> subprocess.Popen[bytes]:
    """Sample GPU, CPU and memory into ``gpu.jsonl`` while this process lives."""
    arguments = ["--out", str(folder / "gpu.jsonl"), "--interval", str(GPU_SAMPLE_SECONDS)]
    return subprocess.Popen(
        [sys.executable, "-m", "common.gpu_sampler", *arguments, "--parent", str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def start_watcher(folder: Path, tag: str, record: dict[str, Any]) -> subprocess.Popen[bytes] | None:
    """Watch the run (common/watcher); on the first node only, where verl writes its metrics."""
    secrets = {name: os.environ.pop(name) for name in WATCHER_SECRETS if name in os.environ}
    if record.get("knobs", {}).get("NODE_RANK", "0") != "0":
        return None
    arguments = ["--run-dir", str(folder), "--tag", tag, "--parent", str(os.getpid())]
    return subprocess.Popen(
        [sys.executable, "-m", "common.watcher", *arguments],
        # Not a process of the run: its end does not take the watcher along, and no stack of it is of interest.
        env={**{name: value for name, value in os.environ.items() if name != processes.TAG}, **secrets},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def end_watcher(watcher: subprocess.Popen[bytes] | None, stopper: Stopper, stopped_by_user: bool) -> None:
    """Let the watcher finish what it has to do after the last checkpoint; for a user who wants out only for a while."""
    if watcher is None:
        return
    watcher.terminate()
    deadline, signals = None, stopper.count
    while watcher.poll() is None:
        if (stopped_by_user or stopper.count > signals) and deadline is None:
            deadline = time.monotonic() + WATCHER_GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            watcher.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            watcher.wait(timeout=0.5)
    if watcher.returncode not in (0, -signal.SIGTERM):
        say(
            f"the watcher had ended early (exit code {watcher.returncode}); the run itself was not touched by that"
        )


def stop_request(folder: Path, attempts: int) -> dict[str, Any]:
    """Why the watcher asked for the stop of the newest attempt; {} when it did not."""
    try:
        request = json.loads((folder / "stop.json").read_text(encoding="utf-8"))
        return request if request["attempt"] == attempts else {}
    except (OSError, ValueError, KeyError):
        return {}


def failure_of(
    folder: Path, attempt: dict[str, Any], request: dict[str, Any], unwritten: bytes
) -> dict[str, Any]:
    """Why a failed attempt failed, for run.json (see common/failures).

    Args:
        unwritten: the end of the console log where the disk had no room for it.
    """
    from common.failures import Failure, explain, explain_run

    if request:
        do = "a key=value of yours may be overruled by another; else report it as an error of the launcher"
        return Failure(
            "effect", "verl trains with other values than it was given", "start-up", request["reason"], do
        ).as_dict()
    try:
        if unwritten:
            return explain(unwritten.decode("utf-8", "replace"), attempt["exit_code"]).as_dict()
        return explain_run(folder, attempt).as_dict()
    except OSError as error:
        return Failure("", f"the console log cannot be read: {error.strerror or error}", "", "", "").as_dict()
    except Exception as error:  # whatever it is: the run's end has to be recorded
        return Failure(
            "", f"the explanation itself failed ({type(error).__name__}: {error}): report it", "", "", ""
        ).as_dict()


@contextlib.contextmanager
def fork_server(folder: Path) -> Iterator[None]:
    """The process that a CPU run's others are forked from (common/cpu/forkserver.py), where the run asks for one."""
    if "VERL_TRAINING_FORK_PYTHON" not in os.environ:
        yield
        return
    # A socket's path has room for 107 bytes, a run folder may be longer.
    with (
        tempfile.TemporaryDirectory(prefix="verl_training-") as place,
        (folder / "forkserver.log").open("ab") as log,
    ):
        path = os.environ["VERL_TRAINING_FORK_SOCKET"] = str(Path(place) / "fork")
        server = subprocess.Popen(
            [sys.executable, "-m", "common.cpu.forkserver", path, str(os.getpid())],
            # A BLAS thread would not survive a fork.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield
        finally:
            server.terminate()
            server.wait(timeout=10)


def wait(command: subprocess.Popen[bytes], stopper: Stopper) -> int:
    """Wait for the command; after a stop signal only for STOP_GRACE_SECONDS."""
    deadline = None
    while True:
        try:
            return command.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if stopper.signal and deadline is None:
                deadline = time.monotonic() + STOP_GRACE_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                command.kill()


def state_of(code: int, stop_signal: int) -> str:
    """``finished``, ``interrupted`` or ``failed``."""
    if stop_signal:
        return "interrupted"
    return runs.FINISHED if code == 0 else "failed"


def supervise(folder: Path, tag: str, command: list[str]) -> int:
    """Run *command* as the newest attempt of *folder*; returns the exit code to pass on."""
    from common.reward_functions.records import drop_marker

    record = runs.read(folder)
    attempt = record["attempts"][-1]
    drop_marker(folder)
    attempt.update(pid=os.getpid(), tag=tag)
    record.update(state="running", command=command, pid=os.getpid(), host=attempt["host"])
    runs.write(folder, record)

    os.environ[processes.TAG] = tag
    stopper = Stopper()
    watcher = start_watcher(folder, tag, record)
    sampler = start_gpu_sampler(folder)
    try:
        with fork_server(folder), (folder / attempt["console"]).open("ab", buffering=0) as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(end_with_parent, os.getpid()),  # noqa: PLW1509  (no thread runs yet)
            )
            stopper.command = child
            assert child.stdout is not None
            unwritten: deque[bytes] = deque(maxlen=UNWRITTEN_CHUNKS)
            reader = threading.Thread(target=pump, args=(child.stdout, log, unwritten), daemon=True)
            reader.start()
            code = wait(child, stopper)
            # Ray daemons of this run hold the pipe open and must be gone before the log can end.
            left = processes.end_tagged(tag)
            reader.join(timeout=10)
        if stopper.signal:
            say(f"ended {left} process(es) that this run had started")
    finally:
        sampler.terminate()
        sampler.wait(timeout=10)

    exit_code = 128 + stopper.signal if stopper.signal else (code if code >= 0 else 128 - code)
    record = runs.read(folder)
    attempt = record["attempts"][-1]
    request = stop_request(folder, attempt["n"]) if stopper.signal else {}
    wrong = request.get("kind") == "effect"
    if wrong:
        exit_code = 1
    attempt.update(end=runs.now(), exit_code=exit_code)
    record.update(
        state="failed" if wrong else state_of(code, stopper.signal), stopped=request or None, failure=None
    )
    if record["state"] == "failed":
        record["failure"] = failure_of(folder, attempt, request, b"".join(unwritten))
    try:
        runs.write(folder, record)
    except OSError as error:
        say(f"{folder / 'run.json'} cannot be written ({error.strerror}): it goes on saying 'running'")
    end_watcher(watcher, stopper, stopped_by_user=bool(stopper.signal) and not request)
    print_failure(folder, record)
    print_summary(folder, record)
    return exit_code


def main() -> None:
    """Entry point of ``python -m common.launcher.supervise``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--tag", required=True)
    parser.add_argument(
        "--record", type=Path, help="what the launcher planned; becomes the folder's run.json"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER)
    own = parser.parse_args()
    if own.record:
        try:
            runs.begin(own.run_dir, own.record)
        except OSError as error:
            raise UserError(f"the run's folder {own.run_dir} cannot be made ({error.strerror})") from None
    sys.exit(supervise(own.run_dir, own.tag, own.command[1:]))


if __name__ == "__main__":
    exit_with(main)
