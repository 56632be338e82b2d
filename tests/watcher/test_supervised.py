"""The real supervisor with the real watcher beside a stand-in for verl."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common.launcher import processes
from common.watcher import stacks

ROOT = Path(__file__).resolve().parents[2]


def supervised(
    folder: Path, script: str, knobs: dict[str, str], *words: str
) -> tuple[subprocess.CompletedProcess, dict]:
    """Run *script* as the training command of a run; returns what was printed and run.json."""
    folder.mkdir(parents=True)
    record = {
        "method": "sft",
        "run": folder.name,
        "knobs": knobs,
        "checkpoint_dir": str(folder / "checkpoints"),
        "total_steps": 100,
        "attempts": [{"n": 1, "metrics": "metrics-1.jsonl", "console": "console-1.log", "host": "h"}],
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "verl.py").write_text(script)
    command = [
        sys.executable,
        str(folder / "verl.py"),
        "--config-path",
        "sft",
        "--config-name",
        "config",
        *words,
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "common.launcher.supervise",
            "--run-dir",
            str(folder),
            "--tag",
            folder.name,
            "--",
            *command,
        ],
        cwd=ROOT,
        env={**os.environ, "WATCH_WEBHOOK": "http://127.0.0.1:9/T0PSECRET"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, json.loads((folder / "run.json").read_text())


SLEEP = "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\ntime.sleep(60)\n"


def test_a_value_that_did_not_arrive_stops_the_run(tmp_path: Path) -> None:
    printed = "print(\"{'model': {'path': 'm'}, 'optim': {'lr': 0.001}}\", flush=True)\n"
    done, record = supervised(tmp_path / "r", printed + SLEEP, {"LEARNING_RATE": "1e-4"}, "optim.lr=1e-4")
    said = "LEARNING_RATE (optim.lr) did not arrive: wanted 0.0001, verl trains with 0.001"
    assert done.returncode == 1
    assert f"error: {said}" in done.stderr
    assert record["state"] == "failed"
    assert (record["failure"]["kind"], record["failure"]["error"]) == ("effect", said)


@pytest.mark.slow
def test_the_same_with_everything_arrived_goes_on(tmp_path: Path) -> None:
    printed = (
        "print(\"{'model': {'path': 'm'}, 'optim': {'lr': 0.0001}}\", flush=True)\nimport time\ntime.sleep(3)"
    )
    done, record = supervised(tmp_path / "r", printed, {"LEARNING_RATE": "1e-4"}, "optim.lr=1e-4")
    assert done.returncode == 0
    assert record["state"] == "finished"
    assert "did not arrive" not in done.stderr
    # An unreachable webhook is said once, at the end, and the training never sees the address.
    assert "webhook: the message was not delivered (ConnectionRefusedError" in done.stderr
    files = "".join(
        path.read_text(errors="replace") for path in (tmp_path / "r").rglob("*") if path.is_file()
    )
    assert "T0PSECRET" not in files + done.stdout + done.stderr


def test_a_rule_of_stop_on_ends_the_run_after_its_checkpoint(tmp_path: Path) -> None:
    script = (
        "import json, os, pathlib\n"
        "folder = pathlib.Path(__file__).parent\n"
        "with open(folder / 'metrics-1.jsonl', 'w') as log:\n"
        "    for step in range(1, 61):\n"
        "        row = {'step': step, 'data': {'train/rewards/accuracies': 0.1}}\n"
        "        log.write(json.dumps(row, separators=(',', ':')) + chr(10))\n"
        "said = folder / 'watch.jsonl'\n"
        "while not (said.exists() and 'stopping after' in said.read_text()):\n"
        "    pass\n"
        "(folder / 'checkpoints/global_step_60').mkdir(parents=True)\n"
        "(folder / 'checkpoints/latest_checkpointed_iteration.txt').write_text('60')\n"
    ) + SLEEP
    knobs = {"STOP_ON": "preference_wrong", "SAVE_FREQ": "60"}
    done, record = supervised(tmp_path / "r", script, knobs)
    assert done.returncode == 128 + signal.SIGINT
    assert record["state"] == "interrupted"
    assert record["stopped"]["kind"] == "rule"
    assert record["stopped"]["reason"].startswith("rule preference_wrong: The model ranks the rejected")
    assert "stopped  rule preference_wrong" in done.stderr
    assert record["failure"] is None


def test_a_failure_is_explained_before_the_summary_and_kept(tmp_path: Path) -> None:
    done, record = supervised(tmp_path / "r", "raise OSError(28, 'No space left on device')", {})
    assert done.returncode == 1
    said = done.stderr.index("failed   the disk is full, or a quota is used up (start-up)")
    assert said < done.stderr.index("run      sft/r: failed at step 0")
    assert record["failure"]["kind"] == "disk_full"
    assert record["failure"]["error"] == "OSError: [Errno 28] No space left on device"


@pytest.mark.parametrize("stop", [False, True])
def test_stacks_of_a_run_also_while_a_process_is_stopped(tmp_path: Path, stop: bool) -> None:
    script = "import time\ndef waits_for_nothing():\n    print(1, flush=True)\n    time.sleep(60)\nwaits_for_nothing()"
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "VERL_TRAINING_RUN": str(tmp_path)},
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        if stop:
            child.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        count, stopped = stacks.save(str(tmp_path), tmp_path / "stacks" / "s.txt", "why")
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert count == 1
    assert bool(stopped) is stop
    text = (tmp_path / "stacks" / "s.txt").read_text()
    assert text.startswith(f"why\n\nprocess {child.pid} ")
    assert "waits_for_nothing" in text.rpartition("Thread")[2]


STEPS = """
import json, pathlib, time
with open(pathlib.Path(__file__).parent / "metrics-1.jsonl", "w", buffering=1) as log:
    for step in range(1, 100):
        time.sleep(2.2)
        log.write(json.dumps({"step": step, "data": {"train/loss": 1.0}}, separators=(",", ":")) + chr(10))
"""


@pytest.mark.slow
def test_a_stopped_process_is_reported_within_five_median_steps(tmp_path: Path) -> None:
    """The same with real training: tests/e2e/test_watcher.py."""
    folder = tmp_path / "r"
    starter = threading.Thread(target=supervised, args=(folder, STEPS, {}))
    starter.start()
    beat: dict = {}
    while beat.get("step", 0) < 3:
        time.sleep(0.1)
        if (folder / "heartbeat.json").exists():
            beat = json.loads((folder / "heartbeat.json").read_text())
    (trainer,) = [one for one in processes.tagged("r") if str(folder / "verl.py") in one.cmdline()]
    stopped_at = time.time()
    trainer.send_signal(signal.SIGSTOP)
    while not list(folder.glob("stacks/*.txt")):
        time.sleep(0.1)
    trainer.kill()
    starter.join(timeout=60)
    events = [json.loads(line) for line in (folder / "watch.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["stall", "stall"]
    assert events[0]["time"] - stopped_at <= 5 * beat["step_seconds"]
    assert f"stopped by a signal: process {trainer.pid}" in events[1]["text"]
    assert "<module> (" in Path(events[0]["stacks"]).read_text()
    assert json.loads((folder / "run.json").read_text())["failure"]["kind"] == "killed"
