"""Tokens per second of SFT on the CPU: sft/train.sh and TRL's SFTTrainer, both packed, in one run.

    python benchmarks/sft_throughput.py [--steps 5] [--data FILE]

Same model (SmolLM2-135M-Instruct), same tokenized rows and loss masks, fp32, all cores, AdamW, no gradient
checkpointing, about 2048 tokens a step: TRL packs rows into blocks of 2048 (its best-fit packing), we take as many
conversations as make 2048 tokens on average. Real tokens count, padding would not. The first step of each is left
out (warm-up). Target: ours >= 1.2 x TRL. Exit code 1: a miss.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.cpu.model import ensure_bundled_model  # noqa: E402

TARGET, PACK = 1.2, 2048
TRL_PACKAGES = ["trl==1.16.0", "torch==2.11.0", "transformers==5.9.0"]
_STEP = re.compile(rb"step:(\d+) - .*train/loss")


def rate(seconds: list[float], tokens: list[int]) -> float:
    """Tokens per second over all steps but the first."""
    return sum(tokens[1:]) / sum(seconds[1:])


def command(output: Path, name: str, data: str, steps: int, batch: int) -> list[str]:
    """sft/train.sh in fp32, saving and validating at the end only."""
    flags = {
        "output_dir": str(output),
        "name": name,
        "train_data": data,
        "val_data": str(ROOT / "sft/data/val.jsonl"),
        "steps": str(steps),
        "batch_size": str(batch),
        "max_length": str(PACK),
        "max_tokens_per_gpu": str(PACK),
        "cpu_dtype": "float32",
        "device": "cpu",
        "save_freq": "0",
        "test_freq": "0",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    return ["bash", str(ROOT / "sft/train.sh"), *words]


def token_file(output: Path, data: str) -> tuple[Path, int]:
    """The token file that a launch trains on, and the conversations that make PACK tokens on average."""
    printed = subprocess.run(
        [*command(output, "dry", data, 2, 1), "--dry-run"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"data\.train_files=\S*?(/[^\"\\]+\.parquet)", printed)
    assert found, printed
    counts = json.loads(Path(found.group(1)).with_suffix(".json").read_text())
    return Path(found.group(1)), max(1, round(PACK * counts["samples"] / counts["tokens"]))


def ours(output: Path, data: str, steps: int, batch: int) -> tuple[list[float], list[int]]:
    """Seconds between the logged steps of sft/train.sh, and their tokens; stopped before it validates."""
    process = subprocess.Popen(
        command(output, "ours", data, steps + 1, batch), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    times, log = [], []
    for line in process.stdout:
        log.append(line)
        if _STEP.search(line):
            times.append(time.monotonic())
            if len(times) == steps:
                process.terminate()
    process.wait()
    if len(times) < steps:
        sys.exit("sft/train.sh failed:\n" + b"".join(log)[-3000:].decode(errors="replace"))
    lines = (output / "logs/sft/ours/metrics-1.jsonl").read_text().splitlines()
    tokens = [json.loads(line)["data"]["train/global_tokens"] for line in lines[:steps]]
    # The first interval needs no start: step 1 is left out.
    return [0.0, *(b - a for a, b in itertools.pairwise(times))], tokens


def trl(tokens: Path, steps: int) -> tuple[list[float], list[int]]:
    """Seconds and tokens of TRL's steps, in an environment of its own."""
    from benchmarks.peers import peer_python

    python = peer_python("trl-1.16.0", TRL_PACKAGES)
    arguments = [str(ensure_bundled_model()), str(tokens), str(steps), str(PACK), str(os.cpu_count())]
    done = subprocess.run(
        [str(python), str(ROOT / "benchmarks/trl_sft.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count())},
    )
    if done.returncode:
        sys.exit(f"TRL failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["seconds"], found["tokens"]


def main() -> None:
    """Measure both, one after the other, and print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--data", default=str(ROOT / "sft/data/train.jsonl"))
    own = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        tokens, batch = token_file(output, own.data)
        mine = rate(*ours(output, own.data, own.steps, batch))
        peer = rate(*trl(tokens, own.steps))
    print(f"ours, packed, fp32, {batch} conversations a step   {mine:7.1f} tokens/s")
    print(f"TRL 1.16.0, packed, fp32, blocks of {PACK}       {peer:7.1f} tokens/s")
    print(
        f"ours / TRL = {mine / peer:.2f} (target {TARGET}): {'reached' if mine >= TARGET * peer else 'MISSED'}"
    )
    sys.exit(int(mine < TARGET * peer))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
