"""The watcher beside real training runs."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiny_model import tiny_model

from common.launcher import processes

from .conftest import ROOT, Run, Trainer, wait_for_step

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


def workers(run: Run, name: str) -> list[psutil.Process]:
    """The run's training processes: those with *name* in their command line that are no launchers of others."""
    tag = run.record["attempts"][-1]["tag"]
    found = [(process, process.cmdline()) for process in processes.tagged(tag)]
    return [p for p, words in found if name in " ".join(words) and "torch.distributed.run" not in words]


GRPO = ("--train_batch_size", "4", "--n", "4")
CASES = [
    pytest.param("sft", (), "verl.trainer.sft_trainer", "fit (verl/trainer/sft_trainer.py", id="sft"),
    pytest.param("grpo", GRPO, "ray::WorkerDict", "Thread", marks=pytest.mark.matrix, id="grpo"),
]


@pytest.mark.parametrize(("method", "flags", "name", "frame"), CASES)
def test_a_stopped_worker_is_reported_within_five_steps_with_its_stacks(
    train: Trainer, method: str, flags: tuple[str, ...], name: str, frame: str
) -> None:
    never = ("--steps", "200", "--epochs", "100", "--test_freq", "0", "--save_freq", "0")
    run, process = train.start(method, "hangs", *never, *flags)
    wait_for_step(run, 4, process)
    worker, *_ = workers(run, name)
    time.sleep(0.5)  # into the next step
    stopped_at = time.time()
    worker.send_signal(signal.SIGSTOP)
    try:
        until(lambda: len(events(run, "stall")) == 2, 240)
    finally:
        worker.send_signal(signal.SIGCONT)
    report, who = events(run, "stall")
    step_seconds = json.loads((run.folder / "heartbeat.json").read_text())["step_seconds"]
    assert report["time"] - stopped_at <= 5 * step_seconds
    assert f"stopped by a signal: process {worker.pid}" in who["text"]
    stacks = Path(report["stacks"]).read_text()
    of_worker = stacks.partition(f"process {worker.pid} ")[2].partition("\n\nprocess ")[0]
    assert "stopped" in of_worker.splitlines()[0]
    assert frame in of_worker
    until(lambda: events(run, "went_on"), 60)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert events(run, "effect") == []
    assert run.record["state"] == "interrupted"


def test_after_each_checkpoint_of_a_lora_run(train: Trainer, tmp_path: Path) -> None:
    """The best one stays beside the newest, each is exported with its LoRA folded in, and the command sees each."""
    model = tiny_model(tmp_path / "model")
    rows = (ROOT / "sft/data/val.jsonl").read_text().splitlines()[:16]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "note.py").write_text(
        "import pathlib, sys\npathlib.Path(sys.argv[1], 'seen').open('a').write(sys.argv[2] + chr(10))\n"
    )
    data = ("--train_data", f"{tmp_path}/rows.jsonl", "--val_data", f"{tmp_path}/rows.jsonl")
    size = ("--train_batch_size", "8", "--max_length", "512", "--steps", "3", "--epochs", "9")
    freq = ("--test_freq", "1", "--save_freq", "1", "--keep_checkpoints", "1", "--keep_best", "true")
    # The model learns nothing but noise at this rate, so that the best step is not the last.
    learn = ("--use_lora", "--lr", "0.5", "--lr_scheduler", "constant", "--warmup_ratio", "0")
    note = f"{sys.executable} {tmp_path}/note.py {tmp_path} {{step}}"
    run = train(
        "sft",
        "saves",
        "--model",
        str(model),
        *data,
        *size,
        *freq,
        *learn,
        "--export_hf",
        "true",
        "--on_save",
        note,
    ).check()
    losses = {step: values["val/loss"] for step, values in run.metrics.items() if "val/loss" in values}
    best = min(losses, key=lambda step: (losses[step], -step))
    kept = sorted(int(path.name.rpartition("_")[2]) for path in run.checkpoints.glob("global_step_*"))
    assert kept == sorted({best, 3})
    assert (tmp_path / "seen").read_text().split()[-1] == "3"
    for step in kept:
        exported = run.checkpoints / f"global_step_{step}" / "merged_hf"
        assert (exported / "config.json").is_file()
        assert any(exported.glob("*.safetensors"))
    assert events(run, "effect") == []
