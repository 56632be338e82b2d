"""TRL's DPOTrainer on tokenized pairs; runs in TRL's own environment (see dpo_throughput.py).

python trl_dpo.py MODEL PAIRS_JSON STEPS BATCH SETTINGS_JSON
    # prints {"seconds": [per step], "reference_seconds", "losses", "peak_bytes"} as its last line

SETTINGS_JSON overrides TRL's defaults, e.g. {"precompute_ref_log_probs": true}; "threads" and "dtype" are ours.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Train a few steps and print what they took."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    model_dir, pairs, steps, batch, settings = sys.argv[1:]
    given = json.loads(settings)
    threads, dtype = given.pop("threads"), given.pop("dtype")
    micro = given.pop("per_device_train_batch_size", int(batch))
    on_gpu = torch.cuda.is_available()
    torch.set_num_threads(threads)
    torch.manual_seed(1)

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.start = 0.0
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = self.start or time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            now = time.monotonic()
            self.seconds.append(now - self.start)
            self.start = now

    class InOrder(DPOTrainer):
        """The pairs as they are, tokenized already, in the order of the file."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            started = time.monotonic()
            found = super()._precompute_ref_logps(*args, **kwargs)
            clock.reference = time.monotonic() - started
            return found

    clock: Any = Clock()
    clock.reference = 0.0
    trainer = InOrder(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        train_dataset=Dataset.from_list(json.loads(Path(pairs).read_text())),
        args=DPOConfig(
            output_dir="/tmp/trl_dpo",
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=int(batch) // micro,
            max_length=None,
            max_steps=int(steps),
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            bf16=dtype == "bfloat16",
            use_cpu=not on_gpu,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            **given,
        ),
        callbacks=[clock],
    )
    trainer.train()
    peak = (
        torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(
        json.dumps(
            {
                "seconds": clock.seconds,
                "reference_seconds": clock.reference,
                "losses": losses,
                "peak_bytes": peak,
            }
        )
    )


if __name__ == "__main__":
    main()
