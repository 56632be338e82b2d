"""What the launcher costs: from ./train.sh to the hand-over to verl, and a second real launch to its first step.

    python benchmarks/launch_overhead.py [--runs 7]          hand-over, with a stand-in for the interpreter
    python benchmarks/launch_overhead.py --first-step        a real launch on the CPU, until training begins

Targets: hand-over <= 1 s (median); first step of a launch on a prepared machine <= 45 s. Exit code 1: a miss.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HAND_OVER_SECONDS, FIRST_STEP_SECONDS = 1.0, 45.0
STAND_IN = """#!/bin/sh
case "$*" in *launcher.supervise*verl.trainer.main_ppo*) date +%s.%N >"$HANDED_OVER"; exit 0;; esac
exec "{python}" "$@"
"""


def hand_over(folder: Path, number: int) -> float:
    """Seconds from starting train.sh to the moment it calls the supervised verl command."""
    stamp = folder / f"stamp-{number}"
    env = {**os.environ, "VERL_TRAINING_PYTHON": str(folder / "python"), "HANDED_OVER": str(stamp)}
    start = time.time()
    subprocess.run(
        [
            "bash",
            str(ROOT / "grpo/train.sh"),
            "--device",
            "cpu",
            "--output_dir",
            str(folder),
            "--name",
            f"r{number}",
            "--no-preflight",
        ],
        env=env,
        check=True,
        capture_output=True,
    )
    return float(stamp.read_text()) - start


def first_step(folder: Path) -> float:
    """Seconds from starting train.sh to the start of verl's training loop, validation before it included."""
    command = [
        "bash",
        str(ROOT / "grpo/train.sh"),
        "--device",
        "cpu",
        "--output_dir",
        str(folder),
        "--name",
        "real",
    ]
    start = time.monotonic()
    process = subprocess.Popen(
        [*command, "--steps", "1", "--save_freq", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    reached = 0.0
    for chunk in iter(lambda: process.stdout.readline() if process.stdout else b"", b""):
        if not reached and b"Training Progress" in chunk:
            reached = time.monotonic() - start
    if process.wait() or not reached:
        sys.exit("the run failed")
    return reached


def main() -> None:
    """Measure and compare with the targets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--first-step", action="store_true")
    own = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if own.first_step:
            seconds, target, what = first_step(folder), FIRST_STEP_SECONDS, "to the first step"
        else:
            (folder / "python").write_text(STAND_IN.format(python=sys.executable))
            (folder / "python").chmod(0o755)
            hand_over(folder, 0)
            times = sorted(hand_over(folder, number) for number in range(1, own.runs + 1))
            seconds, target, what = statistics.median(times), HAND_OVER_SECONDS, "to hand-over (median)"
            print(f"min {times[0]:.2f} s, max {times[-1]:.2f} s over {own.runs} runs")
    print(f"{seconds:.2f} s {what}; target <= {target} s: {'reached' if seconds <= target else 'MISSED'}")
    sys.exit(int(seconds > target))


if __name__ == "__main__":
    main()
