"""Run folders, resume, signals, exit codes: with a stand-in for verl's process and everything else real."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from .conftest import Launcher
from .test_bad_input import refused


def test_run_json_tells_what_ran(launch: Launcher) -> None:
    launch("--name", "r", "--n", "4", "trainer.balance_batch=False")
    record = launch.run_json("r")
    assert record["schema"] == 1
    assert (record["method"], record["run"], record["state"]) == ("grpo", "r", "finished")
    assert record["knobs"]["ROLLOUT_N"] == "4"
    assert record["extra"] == ["trainer.balance_batch=False"]
    assert record["total_steps"] == 30
    assert record["versions"]["verl"] == "0.9.1"
    assert record["data"]["train_rows"] == 480
    (attempt,) = record["attempts"]
    assert (attempt["n"], attempt["exit_code"], attempt["metrics"]) == (1, 0, "metrics-1.jsonl")
    assert attempt["end"] is not None


@pytest.mark.parametrize(("code", "state"), [(0, "finished"), (1, "failed"), (7, "failed")])
def test_exit_code_is_verls_own(launch: Launcher, code: int, state: str) -> None:
    done = launch("--name", "e", FAKE_EXIT=str(code))
    assert done.code == code
    assert launch.run_json("e")["state"] == state
    assert f"grpo/e: {state}" in done.err


def test_killed_process_gives_128_plus_signal(launch: Launcher) -> None:
    kill = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
    done = launch("--name", "k", FAKE_SCRIPT=kill)
    assert done.code == 128 + signal.SIGKILL
    assert launch.run_json("k")["state"] == "failed"


def test_default_names_are_unique(launch: Launcher) -> None:
    for _ in range(3):
        assert launch().code == 0
    assert len(list((launch.output / "logs" / "grpo").iterdir())) == 3


def test_summary_reads_the_metrics(launch: Launcher) -> None:
    write = (
        "import json, os\n"
        "with open(os.environ['VERL_FILE_LOGGER_PATH'], 'w') as f:\n"
        "    f.write(json.dumps({'step': 0, 'data': {'val-core/x/acc/mean@1': 0.1}}) + '\\n')\n"
        "    for s in range(1, 11):\n"
        "        d = {'critic/score/mean': s / 10}\n"
        "        if s == 10: d['val-core/x/acc/mean@1'] = 0.7\n"
        "        f.write(json.dumps({'step': s, 'data': d}) + '\\n')\n"
    )
    done = launch("--name", "m", FAKE_SCRIPT=write)
    assert "finished at step 10 of 30" in done.err
    assert "critic/score/mean 0.300 (first 5 steps) -> 0.800 (last 5)" in done.err
    assert "val-core/x/acc/mean@1 0.100 (step 0) -> 0.700 (step 10), best 0.700 at step 10" in done.err


def test_resume_goes_on_with_the_runs_own_knobs(launch: Launcher) -> None:
    launch("--name", "r", "--n", "4", "--lr", "2e-5", "trainer.balance_batch=False", FAKE_EXIT="1")
    launch.fake_checkpoint("r", 15)
    done = launch("--resume", "--lr", "5e-6")
    assert done.code == 0, done.err
    keys = done.overrides
    assert keys["actor_rollout_ref.rollout.n"] == "4"
    assert keys["actor_rollout_ref.actor.optim.lr"] == "5e-6"
    assert keys["trainer.balance_batch"] == "False"
    assert keys["trainer.resume_mode"] == "auto"
    assert done.call["env"]["VERL_FILE_LOGGER_PATH"].endswith("r/metrics-2.jsonl")
    assert "resuming grpo/r from step 15 of 30" in done.err
    record = launch.run_json("r")
    assert [a["n"] for a in record["attempts"]] == [1, 2]
    assert record["attempts"][1]["resumed_from_step"] == 15
    by_name = launch("--resume", "r")
    assert by_name.code == 0
    assert len(launch.run_json("r")["attempts"]) == 3


def test_resume_twice_does_not_repeat_overrides(launch: Launcher) -> None:
    launch("--name", "r", "trainer.balance_batch=False", FAKE_EXIT="1")
    launch.fake_checkpoint("r", 15)
    launch("--resume", "r", "trainer.balance_batch=True")
    done = launch("--resume", "r")
    assert [w for w in done.call["argv"] if "balance_batch" in w] == ["trainer.balance_batch=True"]


def test_new_run_never_resumes(launch: Launcher) -> None:
    assert launch("--name", "n").overrides["trainer.resume_mode"] == "disable"


def test_resume_with_another_world_size(launch: Launcher) -> None:
    launch("--name", "r", FAKE_EXIT="1")
    launch.fake_checkpoint("r", 15, world_size=2)
    refused(launch("--resume", "r"), "written by 2 process(es), this launch has 1")


def test_resume_of_a_finished_run(launch: Launcher) -> None:
    launch("--name", "r")
    launch.fake_checkpoint("r", 30)
    refused(launch("--resume", "r"), "already at step 30 of 30", "raise TOTAL_STEPS")
    assert launch("--resume", "r", "--steps", "40").code == 0


def test_resume_without_a_checkpoint(launch: Launcher) -> None:
    launch("--name", "r", FAKE_EXIT="1")
    refused(launch("--resume", "r"), "has no checkpoint to go on from")


def test_resume_of_another_methods_run_and_of_a_damaged_one(launch: Launcher, tmp_path: Path) -> None:
    launch("--name", "r", FAKE_EXIT="1")
    launch.fake_checkpoint("r", 15)
    folder = launch.output / "logs" / "grpo" / "r"
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "method": "ppo"}))
    refused(launch("--resume", "r"), "is a ppo run")
    (folder / "run.json").write_text("{half")
    refused(launch("--resume", "r"), "run.json is damaged")


RAY_LIKE = """
import os, subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(os.environ["PID_FILE"], "w").write(str(grandchild.pid))
time.sleep(600)
"""


def start_sleeping(launch: Launcher, tmp_path: Path, *flags: str) -> tuple[subprocess.Popen, psutil.Process]:
    """A launch whose stand-in started a daemon in a session of its own, as Ray does."""
    pid_file = tmp_path / "pid"
    pid_file.unlink(missing_ok=True)
    shell = subprocess.Popen(
        launch.command(*flags),
        env=launch.environment(FAKE_SCRIPT=RAY_LIKE, PID_FILE=str(pid_file)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text()):
        assert time.monotonic() < deadline, "the stand-in did not start"
        time.sleep(0.1)
    return shell, psutil.Process(int(pid_file.read_text()))


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stop_ends_what_the_run_started_and_only_that(launch: Launcher, tmp_path: Path, number: int) -> None:
    bystander = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    try:
        shell, daemon = start_sleeping(launch, tmp_path, "--name", "s")
        shell.send_signal(number)
        assert shell.wait(timeout=40) == 128 + number
        assert gone(daemon)
        assert bystander.poll() is None
        assert launch.run_json("s")["state"] == "interrupted"
        assert launch.run_json("s")["attempts"][0]["exit_code"] == 128 + number
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.slow
def test_running_run_is_not_resumed_and_a_killed_one_leaves_nothing(launch: Launcher, tmp_path: Path) -> None:
    launch.fake_checkpoint("s", 15)
    # A checkpoint folder alone counts as a run that must not be overwritten, so the run is made by resuming it.
    (launch.output / "checkpoints" / "grpo" / "s").rename(tmp_path / "kept")
    shell, daemon = start_sleeping(launch, tmp_path, "--name", "s")
    (tmp_path / "kept").rename(launch.output / "checkpoints" / "grpo" / "s")
    refused(launch("--resume", "s"), "still running")
    shell.kill()
    shell.wait()
    assert not gone(daemon)
    done = launch("--resume", "s")
    assert done.code == 0, done.err
    assert gone(daemon)


def test_an_earlier_attempts_reward_error_is_forgotten(launch: Launcher) -> None:
    fail = "import json, os, pathlib; pathlib.Path(os.environ['VERL_FILE_LOGGER_PATH']).with_name("
    fail += (
        "'reward_error.json').write_text(json.dumps({'message': 'r.py:r raised ValueError: boom'})); exit(1)"
    )
    done = launch("--name", "r", FAKE_SCRIPT=fail)
    assert done.code == 1
    assert "failed   the reward function raised: r.py:r raised ValueError: boom" in done.err
    launch.fake_checkpoint("r", 15)
    again = launch("--resume", "r", FAKE_EXIT="3")
    assert again.code == 3
    assert "boom" not in again.err
    assert launch.run_json("r")["failure"]["kind"] == "unknown"


def test_a_log_that_cannot_be_written_holds_nothing_up_and_its_end_is_explained(launch: Launcher) -> None:
    """Files over 4 MiB are refused (RLIMIT_FSIZE), as by a full disk; a pipe that nobody empties would block verl."""
    fill = "for n in range(100_000): print('a line of a log that is too long for this disk, number', n)\n"
    command = launch.command("--name", "full")
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 4096; exec "$@"', "bash", *command],
        env=launch.environment(FAKE_SCRIPT=fill + "raise OSError(28, 'No space left on device')"),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the console log cannot be written (File too large)" in done.stderr
    assert "failed   the disk is full" in done.stderr
    assert "number 99999" in done.stdout
    record = launch.run_json("full")
    assert (record["state"], record["failure"]["kind"]) == ("failed", "disk_full")
    assert (launch.output / "logs/grpo/full/console-1.log").stat().st_size == 4 << 20


def test_a_record_that_cannot_be_written_costs_no_explanation(tmp_path: Path) -> None:
    attempt = {"n": 1, "metrics": "metrics-1.jsonl", "console": "console-1.log", "host": "h"}
    record = {
        "method": "sft",
        "run": "r",
        "knobs": {},
        "checkpoint_dir": str(tmp_path),
        "attempts": [attempt],
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    code = f"""
import os, pathlib, sys
from common.launcher import runs, supervise
real = runs.write
def write(folder, record):
    if record["state"] != "running":
        raise OSError(28, os.strerror(28))
    real(folder, record)
runs.write = write
command = [sys.executable, "-c", "raise MemoryError"]
sys.exit(supervise.supervise(pathlib.Path({str(tmp_path)!r}), "tag-of-a-test", command))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "run.json cannot be written (No space left on device)" in done.stderr
    assert "failed   the host ran out of RAM" in done.stderr
    assert "run      sft/r: failed at step 0" in done.stderr
