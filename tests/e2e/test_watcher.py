"""The watcher beside real training runs."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from common.launcher import processes

from .conftest import Run, Trainer, wait_for_step

pytestmark = pytest.mark.e2e


def events(run: Run, name: str) -> list[dict]:
    path = run.folder / "watch.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [event for event in found if event["event"] == name]


def until(what: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"nothing within {seconds:.0f} s"
        time.sleep(0.1)


def workers(run: Run, module: str) -> list[psutil.Process]:
    """The run's training processes: those of *module* that are no launchers of others."""
    tag = run.record["attempts"][-1]["tag"]
    found = [(process, process.cmdline()) for process in processes.tagged(tag)]
    return [p for p, words in found if module in " ".join(words) and "torch.distributed.run" not in words]


def test_a_stopped_worker_is_reported_within_five_steps_with_its_stacks(train: Trainer) -> None:
    flags = ("--steps", "200", "--epochs", "20", "--test_freq", "0", "--save_freq", "0")
    run, process = train.start("sft", "hangs", *flags)
    wait_for_step(run, 4, process)
    (worker,) = workers(run, "verl.trainer.sft_trainer")
    step_seconds = json.loads((run.folder / "heartbeat.json").read_text())["step_seconds"]
    stopped_at = time.time()
    worker.send_signal(signal.SIGSTOP)
    try:
        until(lambda: len(events(run, "stall")) == 2, 5 * step_seconds + 30)
    finally:
        worker.send_signal(signal.SIGCONT)
    report, who = events(run, "stall")
    assert report["time"] - stopped_at <= 5 * step_seconds
    assert f"stopped by a signal: process {worker.pid}" in who["text"]
    stacks = Path(report["stacks"]).read_text()
    of_worker = stacks.partition(f"process {worker.pid} ")[2].partition("\n\nprocess ")[0]
    assert "stopped" in of_worker.splitlines()[0]
    assert "fit (verl/trainer/sft_trainer.py" in of_worker
    until(lambda: events(run, "went_on"), 60)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "did not arrive" not in train.log_file.read_text()
    assert run.record["state"] == "interrupted"
