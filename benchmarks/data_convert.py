"""Speed and memory of the data conversion, against `datasets` and bare pyarrow, in one run.

    python benchmarks/data_convert.py                     1M rows, all contenders
    python benchmarks/data_convert.py --memory            ours at 1M and 10M rows, for the growth of memory

GSM8K-like JSON Lines (made here, seeded) become verl's RL Parquet. Every contender is a process of its own;
wall time covers its start and imports, peak memory is the sum of the resident sets of its process tree,
sampled every 20 ms. Targets: >= 3x the rows/s of `datasets` at its defaults, <= 4x the time of bare pyarrow
(which converts nothing), memory at 10M rows <= 1.1x that at 1M and <= 600 MB. Exit code 1: a miss.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
LARGE = "ours, ten times the rows"
FASTER_THAN_DATASETS, TIMES_PYARROW, MEMORY_GROWTH, MEMORY_MB = 3.0, 4.0, 1.1, 600
_NAMES = ("Ada", "Ben", "Chen", "Dina", "Emil", "Fatima", "Goran", "Hana")
_THINGS = ("apples", "marbles", "stamps", "pencils", "tickets", "shells", "coins", "cards")
_DATASETS = """
import sys, datasets
source, output, form = sys.argv[1:]
datasets.disable_progress_bars()
def one(row, index):
    truth = row["answer"].split("#### ")[1].replace(",", "")
    return {"data_source": "openai/gsm8k", "ability": "math",
            "prompt": [{"role": "user", "content": row["question"]}],
            "reward_model": {"style": "rule", "ground_truth": truth},
            "extra_info": {"index": index, "answer": row["answer"], "split": "train"}}
def many(rows, indices):
    pairs = zip(rows["question"], rows["answer"], indices)
    made = [one({"question": question, "answer": answer}, index) for question, answer, index in pairs]
    return {name: [row[name] for row in made] for name in made[0]}
rows = datasets.load_dataset("json", data_files=source, split="train")
if form == "default":
    done = rows.map(one, with_indices=True, remove_columns=rows.column_names)
else:
    done = rows.map(many, with_indices=True, batched=True, num_proc=2, remove_columns=rows.column_names)
done.to_parquet(output)
"""
_PYARROW = """
import sys, pyarrow.json, pyarrow.parquet
pyarrow.parquet.write_table(pyarrow.json.read_json(sys.argv[1]), sys.argv[2])
"""


@dataclass
class Result:
    """One contender: wall seconds, rows per second, peak MB of its process tree."""

    name: str
    rows: int
    seconds: float
    rows_per_second: float
    peak_mb: float


def generate(path: Path, rows: int) -> None:
    """Write GSM8K-like rows of about the size of the real ones."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as handle:
        for number in range(rows):
            name, thing, many = rng.choice(_NAMES), rng.choice(_THINGS), rng.randrange(2, 90)
            days = rng.randrange(2, 30)
            question = (
                f"In week {number} {name} collected {many} {thing} every day for {days} days. "
                f"Then {name} gave half of all the {thing} to a friend who lives on the other side of the "
                f"river, and bought {days} more from the shop around the corner. How many {thing} "
                f"does {name} have at the end of the week?"
            )
            total, left = many * days, many * days // 2 + days
            answer = (
                f"{name} collected {many} x {days} = <<{many}*{days}={total}>>{total} {thing}.\n"
                f"Half of them are {total} / 2 = <<{total}/2={total // 2}>>{total // 2} {thing}.\n"
                f"With those from the shop: {total // 2} + {days} = <<{total // 2}+{days}={left}>>{left}.\n"
                f"#### {left}"
            )
            handle.write(json.dumps({"question": question, "answer": answer}) + "\n")


def tree_mb(process: psutil.Process) -> float:
    """Resident memory of a process and its descendants."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


def measure(name: str, rows: int, command: list[str], folder: Path) -> Result:
    """Run one contender with an empty cache of its own."""
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    started = time.perf_counter()
    process = psutil.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        try:
            peak = max(peak, tree_mb(process))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    seconds = time.perf_counter() - started
    if process.wait():
        raise SystemExit(f"{name}: failed with exit code {process.returncode}")
    shutil.rmtree(folder / "hf", ignore_errors=True)
    return Result(name, rows, round(seconds, 2), round(rows / seconds), round(peak, 1))


def commands(source: Path, folder: Path) -> dict[str, list[str]]:
    """The contenders."""
    ours = [sys.executable, "-m", "common.data_utils", "convert", str(source)]
    outputs = {name: str(folder / f"{name}.parquet") for name in ("ours", "default", "batched", "pyarrow")}
    return {
        "ours": [*ours, outputs["ours"], "--task", "rl", "--json"],
        "pyarrow (converts nothing)": [sys.executable, "-c", _PYARROW, str(source), outputs["pyarrow"]],
        "datasets, batched, 2 processes": [
            sys.executable,
            "-c",
            _DATASETS,
            str(source),
            outputs["batched"],
            "batched",
        ],
        "datasets, default": [sys.executable, "-c", _DATASETS, str(source), outputs["default"], "default"],
    }


def check_equal(folder: Path) -> None:
    """The compared outputs hold the same rows (prompts and ground truths, all of them)."""
    import pyarrow.parquet as pq

    columns = ["data_source", "prompt", "reward_model", "extra_info"]
    files = [pq.ParquetFile(folder / f"{name}.parquet") for name in ("ours", "default")]
    for left, right in zip(*(file.iter_batches(50_000, columns=columns) for file in files), strict=True):
        if left.to_pylist() != right.to_pylist():
            raise SystemExit("the outputs differ: the comparison would be unfair")


def judge(results: dict[str, Result]) -> dict[str, tuple[float, bool]]:
    """Each target with its figure and whether it is met."""
    ours = results["ours"]
    found: dict[str, tuple[float, bool]] = {}

    def target(label: str, figure: float, met: bool) -> None:
        found[label] = (figure, met)

    target(f"peak MB (<= {MEMORY_MB})", ours.peak_mb, ours.peak_mb <= MEMORY_MB)
    if "datasets, default" in results:
        faster = results["datasets, default"].seconds / ours.seconds
        label = f"times the rows/s of datasets, default (>= {FASTER_THAN_DATASETS})"
        target(label, faster, faster >= FASTER_THAN_DATASETS)
        slower = ours.seconds / results["pyarrow (converts nothing)"].seconds
        target(f"times the time of bare pyarrow (<= {TIMES_PYARROW})", slower, slower <= TIMES_PYARROW)
    if LARGE in results:
        large = results[LARGE]
        growth = large.peak_mb / ours.peak_mb
        label = f"times the memory at {large.rows} rows (<= {MEMORY_GROWTH})"
        target(label, growth, growth <= MEMORY_GROWTH)
        target(f"peak MB at {large.rows} rows (<= {MEMORY_MB})", large.peak_mb, large.peak_mb <= MEMORY_MB)
    return found


def main() -> int:
    """Run everything and print a table, then one JSON line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--memory", action="store_true", help="ours at ROWS and at ten times ROWS (14 GB of disk)"
    )
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the temporary files go")
    args = parser.parse_args()
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        source = folder / "rows.jsonl"
        generate(source, args.rows)
        contenders = commands(source, folder)
        if args.memory:
            contenders = {"ours": contenders["ours"]}
        for label, command in contenders.items():
            results[label] = measure(label, args.rows, command, folder)
            print(f"{label:32} {asdict(results[label])}", flush=True)
        if args.memory:
            first = shutil.copy(source, folder / "first.jsonl")
            with source.open("ab") as handle:
                for _ in range(9):
                    with Path(first).open("rb") as block:
                        shutil.copyfileobj(block, handle, 1 << 24)
            results[LARGE] = measure(LARGE, args.rows * 10, contenders["ours"], folder)
            print(f"{LARGE:32} {asdict(results[LARGE])}", flush=True)
        else:
            check_equal(folder)
    verdicts = judge(results)
    for label, (figure, met) in verdicts.items():
        print(f"{'met   ' if met else 'MISSED'} {figure:8.2f} {label}")
    values: dict[str, Any] = {"results": [asdict(result) for result in results.values()]}
    values["targets"] = {
        label: {"figure": round(figure, 3), "met": met} for label, (figure, met) in verdicts.items()
    }
    print(json.dumps(values))
    return 0 if all(met for _, met in verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
