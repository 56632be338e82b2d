"""Seconds per GRPO step on the CPU: ours, raw verl with upstream's example values, and TRL, in one run.

    python benchmarks/grpo_step.py [--steps 5]

Same model (SmolLM2-135M-Instruct), same prompts, 8 prompts x 8 samples x 16 new tokens, KL off for TRL and ours at
their defaults. Raw verl gets the values of upstream's GRPO examples (packed batches, gradient checkpointing, KL loss
with its reference pass) and, beyond that, what it cannot run without on a CPU and the plugin's faster layers. The first
step of each is left out (warm-up). Targets: ours <= 0.8 x raw verl, ours <= 0.5 x TRL in fp32. Exit code 1: a miss.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.cpu.model import ensure_bundled_model  # noqa: E402

RAW_TARGET, TRL_TARGET = 0.8, 0.5

# What upstream's examples set and our CPU defaults change.
UPSTREAM = {
    "actor_rollout_ref.model.use_remove_padding": "True",
    "actor_rollout_ref.model.external_lib": "null",
    "actor_rollout_ref.model.use_fused_kernels": "False",
    "actor_rollout_ref.model.enable_gradient_checkpointing": "True",
    "actor_rollout_ref.actor.fsdp_config.reshard_after_forward": "True",
    "actor_rollout_ref.actor.use_kl_loss": "True",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": "16384",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu": "16384",
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu": "16384",
    "+actor_rollout_ref.rollout.engine_kwargs.vllm.block_size": "128",
}
UPSTREAM_ENVIRONMENT = {"RAY_worker_niceness": "15"}


def median_after_first(seconds: list[float]) -> float:
    """Median of all steps but the first."""
    return statistics.median(seconds[1:])


def step_seconds(metrics: Path) -> list[float]:
    """``perf/time_per_step`` of every training step in verl's file log."""
    entries = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    return [entry["perf/time_per_step"] for entry in entries if "perf/time_per_step" in entry]


def ours(output: Path, name: str, steps: int, *flags: str) -> list[float]:
    """Step times of grpo/train.sh at its CPU defaults."""
    common = [
        "--output_dir",
        str(output),
        "--name",
        name,
        "--steps",
        str(steps),
        "--save_freq",
        "0",
        "--test_freq",
        "0",
    ]
    log = output / f"{name}.log"
    with log.open("wb") as file:
        subprocess.run(
            ["bash", str(ROOT / "grpo/train.sh"), *common, "--device", "cpu", *flags],
            stdout=file,
            stderr=subprocess.STDOUT,
            check=True,
        )
    return step_seconds(output / "logs" / "grpo" / name / "metrics-1.jsonl")


def raw_verl(output: Path, steps: int) -> list[float]:
    """Step times of ``python -m verl.trainer.main_ppo`` called directly, with upstream's values."""
    common = [
        "--output_dir",
        str(output),
        "--name",
        "raw",
        "--steps",
        str(steps),
        "--save_freq",
        "0",
        "--test_freq",
        "0",
    ]
    values = [f"{key}={value}" for key, value in UPSTREAM.items()]
    printed = subprocess.run(
        ["bash", str(ROOT / "grpo/train.sh"), *common, "--device", "cpu", "--dry-run", *values],
        env={**os.environ, **UPSTREAM_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    words = shlex.split(printed)
    start = next(n for n in range(words.index("env") + 1, len(words)) if "=" not in words[n])
    env = dict(word.split("=", 1) for word in words[words.index("env") + 1 : start])
    (output / "logs" / "grpo" / "raw").mkdir(parents=True)
    with (output / "raw.log").open("wb") as file:
        subprocess.run(
            words[start:], env={**os.environ, **env}, stdout=file, stderr=subprocess.STDOUT, check=True
        )
    return step_seconds(Path(env["VERL_FILE_LOGGER_PATH"]))


def trl(steps: int) -> list[float]:
    """Step times of TRL's GRPOTrainer in fp32, in an environment of its own."""
    from benchmarks.peers import trl_python

    python = trl_python()
    script, data = ROOT / "benchmarks/trl_grpo.py", ROOT / "grpo/data/train.jsonl"
    done = subprocess.run(
        [str(python), str(script), str(ensure_bundled_model()), str(data), str(steps)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count())},
    )
    if done.returncode:
        sys.exit(f"TRL failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])["seconds"]


def main() -> None:
    """Measure all contenders one after another and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        seconds = {
            "ours": median_after_first(ours(output, "ours", steps)),
            "ours, fp32": median_after_first(ours(output, "fp32", steps, "--cpu_dtype", "float32")),
            "raw verl, upstream's values": median_after_first(raw_verl(output, steps)),
            "TRL 1.16.0, fp32": median_after_first(trl(steps)),
        }
    mine = seconds["ours"]
    for name, value in seconds.items():
        print(f"{name:<30} {value:6.2f} s a step   ours / this = {mine / value:.2f}")
    to_raw, to_trl = mine / seconds["raw verl, upstream's values"], mine / seconds["TRL 1.16.0, fp32"]
    print(f"fp32 against fp32: ours / TRL = {seconds['ours, fp32'] / seconds['TRL 1.16.0, fp32']:.2f}")
    missed = to_raw > RAW_TARGET or to_trl > TRL_TARGET
    print(f"targets: raw <= {RAW_TARGET}, TRL <= {TRL_TARGET}: {'MISSED' if missed else 'reached'}")
    sys.exit(int(missed))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
