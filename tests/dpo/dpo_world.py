"""Small random models with a real tokenizer, pairs with prompts of several kinds, and runs of the real trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCH = 8, 4


def tiny_model(folder: Path, tokenizer: Any, seed: int = 0, tied: bool = True) -> Path:
    """A Llama of two layers with random weights, saved with the tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, max_position_embeddings=512, initializer_range=0.2,
        # As verl sets it: the embedding of the pad token gets no gradient.
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pair_rows(count: int = 24) -> list[dict[str, Any]]:
    """Pairs with short and long answers on either side, some with a system prompt or earlier turns."""
    rows = []
    for number in range(count):
        prompt: Any = f"What is {number} plus {number * 3 % 7}?"
        if number % 3 == 1:
            system = {"role": "system", "content": f"You are clerk {number}."}
            prompt = [system, {"role": "user", "content": prompt}]
        if number % 5 == 2:
            prompt = [
                {"role": "user", "content": "Hello!"},
                {"role": "assistant", "content": "Hi, ask me anything."},
                {"role": "user", "content": f"Then what is {number}?"},
            ]
        rows.append(
            {
                "prompt": prompt,
                "chosen": f"It is {number + number * 3 % 7}. " * (1 + number % 3),
                "rejected": f"No idea about {number}. " * (1 + number % 4),
            }
        )
    return rows


def preference_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the schema that the launcher hands to the trainer."""
    from common.data_utils import json_to_parquet

    source = path.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    json_to_parquet(source, path, task="preference")
    return path


@dataclass
class World:
    """A folder with a model and pairs, and runs of DPOTrainer in it."""

    folder: Path
    model: Path
    data: Path

    def overrides(self, *more: str) -> list[str]:
        dtypes = "{param_dtype: float32, reduce_dtype: float32, buffer_dtype: float32}"
        return [
            f"data.train_files={self.data}", f"data.train_batch_size={BATCH}", "data.max_length=256",
            "data.max_prompt_length=128", "data.max_token_len_per_gpu=4096", f"model.path={self.model}",
            "model.enable_gradient_checkpointing=False", "model.external_lib=common.packed_sdpa",
            "+model.override_config.attn_implementation=sdpa", "engine.strategy=fsdp2",
            "engine.use_torch_compile=False", f"+engine.mixed_precision={dtypes}", "optim.lr=1e-3",
            "optim.lr_scheduler_type=constant", "optim.lr_warmup_steps_ratio=0", "optim.weight_decay=0",
            "optim.clip_grad=1.0", "trainer.total_epochs=2", f"trainer.total_training_steps={STEPS}",
            "trainer.device=cpu", "trainer.logger=[file]", "trainer.resume_mode=disable", "trainer.test_freq=4",
            *more,
        ]  # fmt: skip

    def run(self, runs: list[dict[str, Any]], processes: int = 1) -> dict[str, dict[int, dict[str, float]]]:
        """Metrics per run and step. A run is {"name", "overrides", "stop_after"}."""
        for run in runs:
            run["overrides"] = [*run["overrides"], f"trainer.default_local_dir={self.folder / run['name']}"]
        plan = self.folder / "runs.json"
        plan.write_text(json.dumps({"folder": str(self.folder), "runs": runs}))
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "VERL_TRAINING_CACHE": str(self.folder / "cache"),
            "VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "common.cpu.plugin", "VERL_ENGINE_DEVICE": "cuda",
            "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        done = subprocess.run(
            [sys.executable, *command, str(Path(__file__).with_name("dpo_runs.py")), str(plan)],
            env=environment, capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-6000:]
        self.log = done.stderr
        return {run["name"]: read_metrics(self.folder / f"{run['name']}.jsonl") for run in runs}


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        found.setdefault(entry["step"], {}).update(entry["data"])
    return found
