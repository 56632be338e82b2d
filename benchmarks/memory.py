"""The memory estimate against measured peaks on the CPU, in one run.

    python benchmarks/memory.py [--only NAME]

Each case is a real launch of train.sh for a few steps. Measured is its peak less what interpreters, libraries and Ray
take, which the same launch with a model of 60,000 weights shows; estimated is `common.memory` without its part for
them. SFT and DPO: the kernel's high-water mark of the training process (ru_maxrss, see PEAK); GRPO and PPO: the sum
of the proportional set sizes of all processes, looked at every second. Weights are random where no model is bundled:
memory does not ask what they are. Target: within 20%. Exit code 1: a miss.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from common.cpu.model import ensure_bundled_model  # noqa: E402
from common.launcher import processes  # noqa: E402
from common.memory import Estimate, estimate  # noqa: E402
from common.memory.compose import compose  # noqa: E402
from common.memory.models import config_of  # noqa: E402

TARGET = 0.2
GIB = 1 << 30
# Tokens of every row: a conversation of SFT; prompt and answer of a preference pair.
ROW, PROMPT, ANSWER = 256, 64, 128
# hidden, MLP, layers, heads, kv heads of Llama-shaped models with SmolLM2's vocabulary
SHAPES = {"llama-60m": (512, 1408, 12, 8, 4), "llama-360m": (960, 2560, 32, 15, 5)}
CPU = ["--device", "cpu", "--cpu_dtype", "float32", "--test_freq", "0"]
FLAGS = {
    "sft": [*CPU, "--steps", "3", "--batch_size", "8", "--max_tokens_per_gpu", "1024"],
    "dpo": [*CPU, "--steps", "3", "--batch_size", "8", "--max_tokens_per_gpu", "650"],
    "grpo": [*CPU, "--steps", "2", "--save_freq", "2"],
    "ppo": [*CPU, "--steps", "2", "--save_freq", "2", "--batch_size", "16"],
}
LENGTHS = {
    "sft": ["--max_length", str(ROW)],
    "dpo": ["--max_length", str(PROMPT + ANSWER), "--max_prompt_length", str(PROMPT)],
}
# The tiny model counts bytes, not words: the same rows are longer.
TINY_LENGTHS = {
    "sft": ["--max_length", "512", "--max_tokens_per_gpu", "512"],
    "dpo": ["--max_length", "512", "--max_prompt_length", "256", "--max_tokens_per_gpu", "1024"],
    "grpo": ["--max_prompt_length", "128"],
    "ppo": ["--max_prompt_length", "128"],
}
CASES: dict[str, tuple[str, str, list[str]]] = {
    "sft 60M": ("sft", "llama-60m", []),
    "sft 135M": ("sft", "smollm2", []),
    "sft 360M": ("sft", "llama-360m", []),
    "sft 135M, checkpointing": ("sft", "smollm2", ["--gradient_checkpointing", "true"]),
    "sft 135M, LoRA": ("sft", "smollm2", ["--use_lora"]),
    "sft 135M, bfloat16": ("sft", "smollm2", ["--cpu_dtype", "bfloat16"]),
    "dpo 135M": ("dpo", "smollm2", []),
    "dpo 135M, bfloat16": ("dpo", "smollm2", ["--cpu_dtype", "bfloat16"]),
    "dpo 135M, LoRA": ("dpo", "smollm2", ["--use_lora"]),
    "grpo 135M": ("grpo", "smollm2", []),
    "grpo 135M, LoRA": ("grpo", "smollm2", ["--use_lora"]),
    "ppo 135M": ("ppo", "smollm2", []),
}

# Runs a command and writes the peak of its largest process to a file, in KiB. A process takes over the high-water mark
# of the one that started it, through exec: between us, who may be large, and the command has to be a small one.
PEAK = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=file)
sys.exit(code)
"""


@dataclass(frozen=True)
class Result:
    """Bytes beyond interpreters and libraries."""

    measured: int
    estimated: int

    @property
    def ratio(self) -> float:
        """Estimated to measured."""
        return self.estimated / self.measured


def model_folder(name: str, folder: Path) -> str:
    """A Llama of one of SHAPES with random weights and SmolLM2's tokenizer; `tiny` and `smollm2` as elsewhere."""
    if name == "smollm2":
        return name
    target = folder / name
    if target.is_dir():
        return str(target)
    if name == "tiny":
        from tiny_model import tiny_model

        return str(tiny_model(target))
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    hidden, width, layers, heads, kv_heads = SHAPES[name]
    base = ensure_bundled_model()
    config = LlamaConfig.from_pretrained(
        base, hidden_size=hidden, intermediate_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=hidden // heads,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target)  # type: ignore[arg-type]
    AutoTokenizer.from_pretrained(base).save_pretrained(target)
    return str(target)


def equal_rows(method: str, folder: Path, rows: int = 32) -> list[str]:
    """Flags with data whose rows are all of the same length under SmolLM2's template; RL has its sample data."""
    if method not in LENGTHS:
        return []
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(ensure_bundled_model())

    def text(tokens: int, before: list[dict[str, str]], role: str) -> str:
        """As many words as make *tokens* with the turns before and the template's own."""

        def count(repeats: int) -> int:
            turns = [*before, {"role": role, "content": "a" + " a" * (repeats - 1)}]
            return len(
                words.apply_chat_template(
                    turns, tokenize=True, return_dict=False, add_generation_prompt=role == "user"
                )
            )

        repeats = tokens - count(1) + 1
        assert count(repeats) == tokens
        return "a" + " a" * (repeats - 1)

    user = {"role": "user", "content": "go" if method == "sft" else text(PROMPT, [], "user")}
    if method == "sft":
        row: dict[str, Any] = {
            "messages": [user, {"role": "assistant", "content": text(ROW, [user], "assistant")}]
        }
    else:
        answer = text(PROMPT + ANSWER, [user], "assistant")
        row = {"prompt": user["content"], "chosen": answer, "rejected": answer.replace("a", "b")}
    file = folder / f"{method}.jsonl"
    file.write_text((json.dumps(row) + "\n") * rows, encoding="utf-8")
    return ["--train_data", str(file), "--val_data", str(file)]


def launch(method: str, name: str, flags: list[str], folder: Path) -> tuple[int, int]:
    """Run train.sh to its end; returns its peak as `Result` counts it, and that of all its processes, in bytes.

    Raises:
        RuntimeError: it ended badly.
    """
    outputs = folder / "outputs"
    command = ["bash", str(ROOT / method / "train.sh"), "--output_dir", str(outputs), "--name", name, *flags]
    log, peak = folder / f"{name}.log", folder / f"{name}.peak"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", PEAK, str(peak), *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        seen = [0]
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(outputs / "logs" / method / name, ended, seen))
        watcher.start()
        try:
            process.wait()
        finally:
            if process.poll() is None:  # interrupted: the run ends with us
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
            ended.set()
            watcher.join()
    shutil.rmtree(outputs / "checkpoints", ignore_errors=True)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{log.read_text(errors='replace')[-3000:]}")
    # Ray's processes are not its children; torchrun's are.
    return (seen[0] if method in ("grpo", "ppo") else int(peak.read_text()) * 1024), seen[0]


def _watch(run: Path, ended: threading.Event, seen: list[int]) -> None:
    """Note the most that all processes of the run have together."""
    while not ended.wait(1):
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            tag = json.loads((run / "run.json").read_text(encoding="utf-8"))["attempts"][-1]["tag"]
            total = 0
            for process in processes.tagged(tag):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            seen[0] = max(seen[0], total)


def estimated(method: str, model: str, flags: list[str]) -> Estimate:
    """What `python -m common.memory` says about the same launch."""
    return estimate(compose(method, ["--model", model, *flags]), config_of(model), gpus=1, device="cpu")


def beyond_programs(found: Estimate) -> int:
    """Bytes of its peak without interpreters and libraries."""
    return found.host_peak.host_bytes - found.host_peak.host_parts["programs and libraries"]


def programs(method: str, folder: Path) -> tuple[int, int]:
    """Bytes of interpreters, libraries and Ray: the peaks of a tiny model's launch without what its tensors take."""
    model = model_folder("tiny", folder)
    flags = [*FLAGS[method], *TINY_LENGTHS[method]]
    rows, tensors = equal_rows(method, folder), beyond_programs(estimated(method, model, flags))
    own, every = launch(method, f"{method}-tiny", [*flags, *rows, "--model", model], folder)
    return own - tensors, every - tensors


def compare(name: str, folder: Path, without: int) -> Result:
    """Run a case.

    Args:
        without: what `programs` found for its method, first of the two.
    """
    method, model, more = CASES[name]
    path = model_folder(model, folder)
    flags = [*FLAGS[method], *LENGTHS.get(method, []), *more]
    tag = "".join(letter if letter.isalnum() else "-" for letter in name)
    taken, _ = launch(method, tag, [*flags, *equal_rows(method, folder), "--model", path], folder)
    return Result(taken - without, beyond_programs(estimated(method, path, flags)))


def main() -> None:
    """Run the cases and print measured, estimated and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name begins like this")
    chosen = [name for name in CASES if name.startswith(parser.parse_args().only)]
    misses = 0
    without: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in chosen:
            method = CASES[name][0]
            if method not in without:
                without[method], every = programs(method, folder)
                print(
                    f"{method}: programs and libraries take {without[method] / GIB:.2f} GiB, "
                    f"those of all processes {every / GIB:.2f} GiB",
                    flush=True,
                )
            found = compare(name, folder, without[method])
            near = abs(found.ratio - 1) <= TARGET
            misses += not near
            print(
                f"{name:26} measured {found.measured / GIB:6.2f} GiB  estimated {found.estimated / GIB:6.2f} GiB  "
                f"ratio {found.ratio:.2f}{'' if near else '  MISS'}",
                flush=True,
            )
    sys.exit(1 if misses else 0)


if __name__ == "__main__":
    main()
