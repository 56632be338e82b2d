"""Real training runs on the CPU: real verl, Ray, vLLM, FSDP, and a small pretrained model."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import psutil
import pytest

from common.launcher import processes
from common.launcher.summary import read_metrics

ROOT = Path(__file__).resolve().parents[2]
MATRIX_PARTS = 18  # days; two or three tests a day
# Seconds of one run. The default GRPO run has taken 9 minutes on one 2-core machine and 22 on another.
LONGEST = 2700


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """VERL_TRAINING_MATRIX=today keeps the part of the long matrix that is due today (see tests/run.sh)."""
    if os.environ.get("VERL_TRAINING_MATRIX") != "today":
        return
    day = datetime.now(timezone.utc).toordinal()
    matrix = [item for item in items if item.get_closest_marker("matrix")]
    due = {item.nodeid for number, item in enumerate(matrix) if number % MATRIX_PARTS == day % MATRIX_PARTS}
    dropped = [item for item in matrix if item.nodeid not in due]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


@dataclass
class Run:
    """A launch of ``<method>/train.sh`` and everything it left behind."""

    method: str
    name: str
    output: Path
    code: int = -1
    log: str = ""
    peak_memory: int = 0  # bytes; where a fixture watched it

    @property
    def folder(self) -> Path:
        return self.output / "logs" / self.method / self.name

    @property
    def checkpoints(self) -> Path:
        return self.output / "checkpoints" / self.method / self.name

    @property
    def record(self) -> dict:
        return json.loads((self.folder / "run.json").read_text())

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        return dict(read_metrics(self.folder, self.record))

    def prompts(self, step: int) -> set[str]:
        """The prompts of a training step, in any order (verl balances the batch)."""
        lines = (self.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()
        return {json.loads(line)["input"] for line in lines}

    def check(self) -> Run:
        assert self.code == 0, self.log[-6000:]
        return self


@dataclass
class Trainer:
    """Starts real runs below one output folder."""

    output: Path
    log_file: Path
    started: list[subprocess.Popen] = field(default_factory=list)

    def start(self, method: str, name: str, *flags: str, **env: str) -> tuple[Run, subprocess.Popen]:
        command = ["bash", str(ROOT / method / "train.sh"), "--output_dir", str(self.output)]
        if "--resume" not in flags:
            command += ["--name", name]
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                [*command, *flags],
                env={**os.environ, **env},
                cwd=ROOT / method,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return Run(method, name, self.output), process

    def __call__(self, method: str, name: str, *flags: str, timeout: float = LONGEST, **env: str) -> Run:
        before = self.log_file.stat().st_size if self.log_file.exists() else 0
        run, process = self.start(method, name, *flags, **env)
        try:
            run.code = process.wait(timeout=timeout)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=60)
        run.log = self.log_file.read_bytes()[before:].decode(errors="replace")
        return run


def trainer_in(folder: Path) -> Iterator[Trainer]:
    """A trainer that ends what it started, and leaves logs but no checkpoints: all together take 30 GB."""
    trainer = Trainer(folder / "outputs", folder / "console.log")
    yield trainer
    for process in trainer.started:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)
    shutil.rmtree(trainer.output / "checkpoints", ignore_errors=True)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    yield from trainer_in(tmp_path_factory.mktemp("e2e"))


@pytest.fixture(scope="session")
def train_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    """For runs that several modules look at."""
    yield from trainer_in(tmp_path_factory.mktemp("e2e-shared"))


@contextmanager
def watched_memory(run: Run) -> Iterator[None]:
    """Meanwhile, notes the most memory that all processes of *run* together had, in bytes (proportional set size)."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(10):
            total = 0
            with contextlib.suppress(OSError, ValueError, KeyError):
                for process in processes.tagged(run.record["attempts"][-1]["tag"]):
                    with contextlib.suppress(psutil.Error):
                        total += process.memory_full_info().pss
            run.peak_memory = max(run.peak_memory, total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


@pytest.fixture(scope="session")
def grpo_default(train_once: Trainer) -> Run:
    watched = Run("grpo", "default", train_once.output)
    with watched_memory(watched):
        run = train_once("grpo", "default", "--seed", "1").check()
    run.peak_memory = watched.peak_memory
    return run


@pytest.fixture(scope="session")
def sft_default(train_once: Trainer) -> Run:
    return train_once("sft", "default").check()


def wait_for_step(run: Run, step: int, process: subprocess.Popen, timeout: float = 600) -> None:
    """Until the run has logged *step*; fails when it ends or hangs before."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            if step in run.metrics:
                return
        except (OSError, ValueError, KeyError):
            pass
        assert process.poll() is None, "the run ended early"
        time.sleep(0.2)
    raise AssertionError(f"step {step} was not reached in {timeout:.0f} s")
