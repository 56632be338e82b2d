"""TRL's SFTTrainer on tokenized rows, packed; runs in TRL's own environment (see sft_throughput.py).

python trl_sft.py MODEL_DIR TOKENS_PARQUET STEPS TOKENS_PER_STEP THREADS
    # prints {"seconds": [per step], "tokens": [per step], "losses": [per step]} as its last line
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    """Train a few steps in fp32 and print what they took."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    model_dir, tokens, steps, pack, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(1)

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.start = 0.0
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = self.start or time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.monotonic()
            self.seconds.append(now - self.start)
            self.start = now

    counted: list[int] = []

    class Counting(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            counted.append(int(inputs["input_ids"].numel()))
            return super().compute_loss(model, inputs, *args, **kwargs)

    def row(item: dict[str, list[int]]) -> dict[str, list[int]]:
        pairs = zip(item["input_ids"], item["loss_mask"], strict=True)
        return {"labels": [token if learned else -100 for token, learned in pairs]}

    clock = Clock()
    trainer = Counting(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        train_dataset=load_dataset("parquet", data_files=tokens, split="train").map(
            row, remove_columns=["loss_mask"]
        ),
        args=SFTConfig(
            output_dir="/tmp/trl_sft",
            per_device_train_batch_size=1,
            max_length=int(pack),
            packing=True,
            max_steps=int(steps),
            learning_rate=1e-4,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
        ),
        callbacks=[clock],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({"seconds": clock.seconds, "tokens": counted, "losses": losses}))


if __name__ == "__main__":
    main()
