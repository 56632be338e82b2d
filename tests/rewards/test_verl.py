"""With verl's own classes: its managers, and a run in Ray that a failing reward really stops."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.reward_functions import records

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENTRY = ROOT / "common" / "reward_functions" / "verl_entry.py"
USER = "def bad(solution_str, ground_truth):\n    raise KeyError('no field: difficulty')\n"
MANAGERS = """
import asyncio, json, sys
sys.path.insert(0, {here!r})
import verl_standin as run
from verl.trainer.ppo.reward import load_reward_manager
for name in ("naive", "dapo"):
    config = run.reward_config({entry!r}, "", "common:gsm8k", {parts!r}, reward_kwargs={{"strict": False}})
    config.reward.reward_manager.name = name
    manager = load_reward_manager(config, run.Tokenizer())
    print(json.dumps(manager.loop.run_until_complete(manager.run_single(run.sample()))))
"""

pytest.importorskip("verl")


def environment() -> dict[str, str]:
    """Without what another test or a user's Ray cluster left in the environment."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "VERL_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.slow
def test_verls_managers_score_through_the_entry(tmp_path: Path) -> None:
    program = MANAGERS.format(here=str(HERE), entry=str(ENTRY), parts=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 2, done.stderr[-2000:]
    assert all('"reward_score": 1.0' in line and '"reward_error": 0.0' in line for line in lines)
    assert {line["step"] for line in records.read_lines(tmp_path)} == {5}


@pytest.mark.slow
def test_a_failing_reward_stops_a_run_that_swallows_exceptions(tmp_path: Path) -> None:
    reward = tmp_path / "mine.py"
    reward.write_text(USER)
    parts = tmp_path / "parts"
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(HERE / "verl_standin.py"), str(ENTRY), str(reward), "bad", str(parts)],
        check=False,
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode != 0
    assert time.monotonic() - begin < 200
    output = done.stdout + done.stderr
    assert "stopping the run: mine.py:bad raised KeyError: 'no field: difficulty'" in output
    marker = records.read_marker(parts)
    assert marker is not None
    assert marker["sample"]["solution_str"] == "1 2 3"
