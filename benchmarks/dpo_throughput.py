"""Tokens per second and peak memory of DPO on the CPU: ours against TRL's DPOTrainer, in one run.

    python benchmarks/dpo_throughput.py [--steps 2] [--dtype float32] [--data FILE]

SmolLM2-135M-Instruct; the pairs of FILE, cut to 768 tokens (without FILE: ../shared/data/dpo_en_demo.json where it is,
else made-up pairs of the same lengths). Everybody gets the same tokens, 8 pairs a step, the same precision, all cores.
Tokens are those of both conversations of a pair, the prompt counted twice and padding never. The time includes the
pass of the reference over the pairs of the measured steps, wherever it happens.

Ours is dpo/train.sh as it is on a CPU, and once with gradient checkpointing, which TRL's defaults have: memory is
compared like with like. TRL's best settings: precomputed reference, no gradient checkpointing, and
the fastest of some micro-batch sizes. TRL 1.16.0 pads: its padding_free warns and falls back. Exit code 1: a miss.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peers import trl_python  # noqa: E402
from common.cpu.model import ensure_bundled_model  # noqa: E402

DEFAULT_TARGET, BEST_TARGET, MEMORY_TARGET = 3.0, 2.0, 0.7
BATCH, MAX_LENGTH, MAX_PROMPT_LENGTH = 8, 768, 512
TRL_BEST = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
DEMO = ROOT.parent / "shared" / "data" / "dpo_en_demo.json"
# Deciles of the demo data's token counts: prompt, chosen, rejected.
LENGTHS = ((36, 51, 190, 739, 1180), (3, 125, 319, 451, 550), (3, 161, 345, 481, 603))


def made_up() -> list[dict[str, str]]:
    """300 pairs of words, as long as those of the demo data."""
    draw = random.Random(1)

    def text(quantiles: tuple[int, ...]) -> str:
        at = draw.randrange(len(quantiles) - 1)
        return " ".join(
            draw.choices(("time", "house", "water", "green"), k=draw.randint(*quantiles[at : at + 2]))
        )

    return [dict(zip(("prompt", "chosen", "rejected"), map(text, LENGTHS), strict=True)) for _ in range(300)]


def prepare(folder: Path, source: Path | None, steps: int) -> tuple[Path, Path, int]:
    """The first pairs of the data, for us (Parquet) and for TRL (token ids), and their tokens."""
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    from common.data_utils import json_to_parquet
    from dpo.preference_data import Limits, load_pairs

    if source is None:
        source = folder / "made_up.json"
        source.write_text(json.dumps(made_up()))
    everything, ours, theirs = folder / "all.parquet", folder / "pairs.parquet", folder / "pairs.json"
    json_to_parquet(source, everything, task="preference")
    pq.write_table(pq.read_table(everything).slice(0, steps * BATCH), ours)
    tokenizer = AutoTokenizer.from_pretrained(ensure_bundled_model())
    pairs = load_pairs(ours, tokenizer, Limits(MAX_LENGTH, MAX_PROMPT_LENGTH, "cut")).pairs
    rows = [
        {"prompt_ids": one.prompt, "chosen_ids": one.chosen.ids, "rejected_ids": one.rejected.ids}
        for one in pairs
    ]
    theirs.write_text(json.dumps(rows))
    return ours, theirs, sum(one.tokens for one in pairs)


def peak_of(command: list[str], log: Path, env: dict[str, str]) -> int:
    """Run a command; the largest resident size in bytes that any of its processes had."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **env})
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command[:3]} failed:\n{log.read_text()[-3000:]}")
    return usage.ru_maxrss * 1024


def ours(folder: Path, pairs: Path, steps: int, dtype: str, *flags: str) -> dict[str, Any]:
    """dpo/train.sh at its CPU defaults on the pairs."""
    name = "ours" + "".join(flag.strip("-") for flag in flags)
    command = [
        "bash",
        str(ROOT / "dpo/train.sh"),
        "--device",
        "cpu",
        "--output_dir",
        str(folder),
        "--name",
        name,
    ]
    command += [
        "--train_data",
        str(pairs),
        "--val_data",
        str(pairs),
        "--cpu_dtype",
        dtype,
        "--steps",
        str(steps),
    ]
    command += [
        "--model",
        str(ensure_bundled_model()),
        "--batch_size",
        str(BATCH),
        "--max_length",
        str(MAX_LENGTH),
        "--truncation",
        "cut",
    ]
    command += ["--max_prompt_length", str(MAX_PROMPT_LENGTH), "--save_freq", "0", "--lr", "1e-6", *flags]
    command += ["data.val_files=null"]
    # A cache of its own: the reference pass is measured, not found.
    peak = peak_of(command, folder / f"{name}.log", {"VERL_TRAINING_CACHE": str(folder / name)})
    lines = (folder / "logs" / "dpo" / name / "metrics-1.jsonl").read_text().splitlines()
    found = [json.loads(line)["data"] for line in lines]
    times = [values["perf/time_per_step"] for values in found if "perf/time_per_step" in values]
    reference = sum(values.get("timing_s/reference", 0.0) for values in found)
    return {"seconds": times, "reference_seconds": reference, "peak_bytes": peak}


def trl(folder: Path, pairs: Path, steps: int, dtype: str, settings: dict[str, Any]) -> dict[str, Any]:
    """TRL's DPOTrainer, in an environment of its own."""
    given = {**settings, "threads": os.cpu_count() or 1, "dtype": dtype}
    log = folder / "trl.log"
    command = [
        str(trl_python()),
        str(ROOT / "benchmarks/trl_dpo.py"),
        str(ensure_bundled_model()),
        str(pairs),
    ]
    command += [str(steps), str(BATCH), json.dumps(given)]
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count()), "PYTHONPATH": ""}
    peak = peak_of(command, log, environment)
    return {**json.loads(log.read_text().splitlines()[-1]), "peak_bytes": peak}


def main() -> None:
    """Measure everybody and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--data", type=Path, default=DEMO if DEMO.is_file() else None)
    parser.add_argument(
        "--micro", type=int, nargs="+", default=[1], help="TRL's micro-batches to try, in pairs"
    )
    own = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mine, theirs, tokens = prepare(folder, own.data, own.steps)
        contenders: dict[str, Callable[[], dict[str, Any]]] = {
            "ours": lambda: ours(folder, mine, own.steps, own.dtype),
            "TRL, defaults": lambda: trl(folder, theirs, own.steps, own.dtype, {}),
        }
        for micro in own.micro:
            settings = {**TRL_BEST, "per_device_train_batch_size": micro}
            contenders[f"TRL, best settings, micro-batch {micro}"] = partial(
                trl, folder, theirs, own.steps, own.dtype, settings
            )
        contenders["ours, gradient checkpointing"] = lambda: ours(
            folder, mine, own.steps, own.dtype, "--gradient_checkpointing"
        )
        results: dict[str, dict[str, Any]] = {}
        speed: dict[str, float] = {}
        for key, run in contenders.items():
            results[key] = one = run()
            speed[key] = tokens / (sum(one["seconds"]) + one["reference_seconds"])
            print(
                f"{key:<36} {speed[key]:7.1f} tokens/s  {sum(one['seconds']) / own.steps:6.1f} s a step  reference "
                f"{one['reference_seconds']:5.1f} s  peak {one['peak_bytes'] / 2**30:5.2f} GiB",
                flush=True,
            )
    best = max((key for key in speed if "best" in key), key=lambda key: speed[key])
    missed = []
    for key, like, target in (
        ("TRL, defaults", "ours, gradient checkpointing", DEFAULT_TARGET),
        (best, "ours", BEST_TARGET),
    ):
        faster = speed["ours"] / speed[key]
        memory = results[like]["peak_bytes"] / results[key]["peak_bytes"]
        print(f"{key}: ours is {faster:.2f} x as fast; {like}: {memory:.2f} of the memory")
        missed += [f"speed of {key}"] * (faster < target) + [f"memory of {key}"] * (memory > MEMORY_TARGET)
    wanted = f"{DEFAULT_TARGET} x defaults, {BEST_TARGET} x best, {MEMORY_TARGET} of the memory"
    print(f"targets: {wanted}: missed {missed or 'none'}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
