"""What the preflight costs: a launch on 100,000 rows up to the screen, with the data new and with the data known.

    python benchmarks/preflight.py [--rows 100000] [--runs 3] [--method grpo]

"data new" holds everything: flags, conversion, counting every prompt's tokens, trying the reward, composing, verl's
own validate_config, memory, disk, screen. "data known" is every later launch. "preflight" is the part of the latter
that --no-preflight leaves out of a start. Target: <= 8 s on 2 cores for each (median). Exit code 1: a miss.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 8.0
sys.path.insert(0, str(ROOT))


def write_rows(path: Path, rows: int, method: str) -> None:
    """Seeded questions of 20 to 130 tokens, in the method's format."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            a, b = draw.randint(0, 9999), draw.randint(0, 9999)
            story = "Then some more is told about it. " * draw.randint(0, 8)
            question = f"Row {number}: a shop sells {a} apples and {b} pears. {story}How many in all?"
            row = {"question": question, "answer": str(a + b)}
            if method == "dpo":
                row = {"prompt": question, "chosen": str(a + b), "rejected": str(a + b + 1)}
            file.write(json.dumps(row) + "\n")


def launch(method: str, data: Path, folder: Path, model: str, *flags: str) -> float:
    """Seconds of one train.sh with *flags*."""
    command = ["bash", str(ROOT / method / "train.sh"), "--device", "cpu", "--model", model, "--name", "b"]
    command += ["--train_data", str(data), "--output_dir", str(folder / "out")]
    command += ["--max_length", "320"] if method in ("sft", "dpo") else []
    command += ["--max_prompt_length", "256"] if method != "sft" else []
    env = {**os.environ, "VERL_TRAINING_CACHE": str(folder / "cache"), "VERL_TRAINING_PYTHON": sys.executable}
    start = time.monotonic()
    done = subprocess.run([*command, *flags], env=env, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - start
    if done.returncode:
        sys.exit(f"the launch failed:\n{done.stdout}{done.stderr}")
    return seconds


def main() -> None:
    """Measure and compare with the target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--method", default="grpo", choices=["grpo", "ppo", "gspo", "sft", "dpo"])
    own = parser.parse_args()
    from common.cpu.model import ensure_bundled_model

    model, missed = str(ensure_bundled_model()), False
    times: dict[str, list[float]] = {"data new": [], "data known": [], "preflight": []}
    for _ in range(own.runs):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data = folder / "rows.jsonl"
            write_rows(data, own.rows, own.method)
            times["data new"].append(launch(own.method, data, folder, model, "--preflight-only"))
            # SFT and DPO tokenize all rows when they are first to be trained on.
            launch(own.method, data, folder, model, "--dry-run", "--no-preflight")
            known = launch(own.method, data, folder, model, "--preflight-only")
            without = launch(own.method, data, folder, model, "--dry-run", "--no-preflight")
            times["data known"].append(known)
            times["preflight"].append(known - without)
    for what, found in times.items():
        middle = statistics.median(found)
        missed |= middle > SECONDS
        verdict = "reached" if middle <= SECONDS else "MISSED"
        print(
            f"{what:<10} {middle:6.2f} s ({min(found):.2f} to {max(found):.2f}); <= {SECONDS:g} s: {verdict}"
        )
    sys.exit(int(missed))


if __name__ == "__main__":
    main()
