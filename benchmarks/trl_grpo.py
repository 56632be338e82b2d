"""TRL's GRPOTrainer on the task of grpo/train.sh; runs in TRL's own environment (see grpo_step.py).

python trl_grpo.py MODEL_DIR TRAIN_JSONL STEPS    # prints {"seconds": [per step]} as its last line
"""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any

PROMPTS, SAMPLES, NEW_TOKENS = 8, 8, 16


def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """The same score as grpo/reward_func.py for whole numbers."""
    scores = []
    for completion, gold in zip(completions, answer, strict=True):
        text = completion[0]["content"]
        numbers = re.findall(r"-?\d+", text)
        acc = float(bool(numbers) and numbers[-1] == gold)
        scores.append(0.8 * acc + 0.2 * float(bool(numbers) and text.strip() == numbers[-1]))
    return scores


def main() -> None:
    """Train a few steps in fp32 and print the seconds of each."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model_dir, data, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
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

    def row(item: dict[str, str]) -> dict[str, Any]:
        return {"prompt": [{"role": "user", "content": item["question"]}], "answer": item["answer"]}

    clock = Clock()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        reward_funcs=reward,
        train_dataset=load_dataset("json", data_files=data, split="train").map(
            row, remove_columns=["question"]
        ),
        args=GRPOConfig(
            output_dir="/tmp/trl_grpo",
            per_device_train_batch_size=PROMPTS * SAMPLES,
            num_generations=SAMPLES,
            max_completion_length=NEW_TOKENS,
            max_steps=steps,
            learning_rate=1e-5,
            beta=0.0,
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
    print(json.dumps({"seconds": clock.seconds}))


if __name__ == "__main__":
    main()
