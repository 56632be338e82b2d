"""The preflight in a real launch: stopped before a run folder is made, forced, alone, as JSON."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.cpu.model import ensure_bundled_model
from common.launcher import runs
from common.launcher.errors import UserError

sys.path.append(str(Path(__file__).resolve().parents[1]))
from launcher.conftest import ROOT, Launcher, launch  # noqa: F401

REAL = {"REAL_PREFLIGHT": "1", "DEVICE": "cpu"}
WRONG = "actor_rollout_ref.rollout.nn=4"


@pytest.mark.slow
def test_alone_it_starts_nothing_and_says_everything(launch: Launcher) -> None:  # noqa: F811
    done = launch("--name", "p", "--preflight-only", "--json", **REAL)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["ok"] is True
    assert report["what"]["run"] == "grpo/p"
    assert report["what"]["each step"] == "64 answers (8 prompts x 8), at most 5,120 tokens"
    assert report["cost"]["checkpoint"] > 0
    assert done.call is None
    assert not launch.output.exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_of_many_new_rows_a_sample_is_looked_at_until_a_launch_needs_them(
    launch: Launcher,  # noqa: F811
    tmp_path: Path,
    method: str,
) -> None:
    pair = '{{"prompt": "{n} + 1?", "chosen": "{m}", "rejected": "{n}"}}\n'
    row = '{{"question": "{n} + 1?", "answer": "{m}"}}\n' if method == "sft" else pair
    data, cache = tmp_path / "rows.jsonl", tmp_path / "cache"
    data.write_text("".join(row.format(n=n, m=n + 1) for n in range(20_008)))
    flags = ("--train_data", str(data), "--steps", "0", "--epochs", "1", "--batch_size", "8")
    flags += ("--model", str(ensure_bundled_model()))
    real = {**REAL, "VERL_TRAINING_CACHE": str(cache)}

    first = launch(*flags, "--name", "p", "--preflight-only", method=method, **real)
    assert first.code == 0, first.err
    assert "TRAIN_DATA: looked at 5,002 of 20,008 rows, evenly spread" in first.err
    assert "steps      2501 (epochs: 1)" in first.out
    assert not [f for kind in ("tokens", "pairs") for f in cache.glob(f"data/*/{kind}-train-*")]

    started = launch(*flags, "--name", "p", method=method, **real)
    assert started.code == 0, started.err
    again = launch(*flags, "--name", "q", "--preflight-only", method=method, **real)
    assert "looked at" not in started.err + again.err
    assert launch.run_json("p", method)["total_steps"] == 2501

    data.write_text(data.read_text().replace("+ 1?", "+ 1? " + "word " * 3000, 5))
    refused = launch(*flags, "--name", "r", "--preflight-only", method=method, **real)
    assert refused.code == 2
    assert "are more than MAX_LENGTH" in refused.err or "are longer than MAX_LENGTH" in refused.err


@pytest.mark.slow
def test_a_wrong_key_stops_a_launch_and_leaves_nothing(launch: Launcher) -> None:  # noqa: F811
    done = launch("--name", "p", WRONG, **REAL)
    assert (done.code, done.call, done.out) == (2, None, "")
    assert "error: actor_rollout_ref.rollout.nn=4: verl 0.9.1 has no key" in done.err
    assert "did you mean actor_rollout_ref.rollout.n?" in done.err
    assert not launch.output.exists()


@pytest.mark.slow
def test_force_goes_on_and_says_so(launch: Launcher) -> None:  # noqa: F811
    done = launch("--name", "p", "actor_rollout_ref.rollout.temperature=0", "--force", **REAL)
    assert done.code == 0, done.err
    assert "gives 8 times the same answer" in done.err
    assert "(--force: going on)" in done.err
    assert done.overrides["actor_rollout_ref.rollout.temperature"] == "0"
    assert launch.run_json("p")["state"] == "finished"


@pytest.mark.slow
def test_dry_run_prints_the_command_alone_and_it_can_be_checked_again(launch: Launcher) -> None:  # noqa: F811
    done = launch("--name", "p", "--dry-run", method="sft", **REAL)
    assert done.code == 0, done.err
    assert done.out.startswith("cd ")
    assert done.out.count("\n") == 1
    assert "preflight  all well" in done.err
    words = [sys.executable, "-m", "common.preflight", "--json"]
    again = subprocess.run(words, input=done.out, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["what"]["method"] == "sft"


def test_a_refused_resume_leaves_the_old_record(launch: Launcher) -> None:  # noqa: F811
    assert launch("--name", "r", DEVICE="cpu", FAKE_EXIT="1").code == 1
    launch.fake_checkpoint("r", 15)
    before = launch.run_json("r")
    # Without verl: Hydra's refusal alone stops it.
    done = launch("--resume", "r", "data.train_files={a", **REAL)
    assert done.code == 2
    assert launch.run_json("r") == before


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--json"], "--json is the form of the report of --preflight-only"),
        (["--preflight-only", "--no-preflight"], "contradict each other"),
    ],
)
def test_modes_that_contradict(launch: Launcher, flags: list[str], part: str) -> None:  # noqa: F811
    done = launch(*flags)
    assert done.code == 2
    assert part in done.err


def test_two_launches_cannot_open_one_folder(tmp_path: Path) -> None:
    def planned(attempts: int) -> Path:
        record: dict = {"run": "x", "attempts": [{"n": n} for n in range(1, attempts)]}
        runs.add_attempt(record, None)
        (tmp_path / "plan.json").write_text(json.dumps(record))
        return tmp_path / "plan.json"

    folder = tmp_path / "run"
    runs.begin(folder, planned(1))
    assert not (tmp_path / "plan.json").exists()
    with pytest.raises(UserError, match="another launch of this run was faster"):
        runs.begin(folder, planned(1))
    runs.begin(folder, planned(2))
    with pytest.raises(UserError, match="another launch of this run was faster"):
        runs.begin(folder, planned(2))
    assert len(runs.read(folder)["attempts"]) == 2


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.2])
def test_the_process_that_asks_verl_ends_with_its_launcher(tmp_path: Path, seconds: float) -> None:
    """Whenever that ends: before it has asked the kernel to be told, too."""
    words = f"{shlex.quote(sys.executable)} -m common.preflight.verl_check {tmp_path / 'socket'} $$"
    shell = subprocess.run(
        ["bash", "-c", f"{words} >{tmp_path / 'log'} 2>&1 & echo $!; sleep {seconds}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    left = int(shell.stdout)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(left) and psutil.Process(left).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
