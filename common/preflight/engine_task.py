"""SFT and DPO on the resolved config: the launcher's own arithmetic, and what the engine trainers trip over later."""

from __future__ import annotations

from collections.abc import Iterator

from common.launcher import checks, engine_checks
from common.preflight.batches import fsdp_size, origin, positions, sequence_parallel
from common.preflight.finding import Finding, error, knob_of
from common.preflight.job import Job
from common.preflight.optimiser import optimiser

_UNKNOWN_ROWS = 10**9
_SHARED = {
    "TRAIN_BATCH_SIZE": "data.train_batch_size",
    "MICRO_BATCH_SIZE": "data.micro_batch_size_per_gpu",
    "MAX_LENGTH": "data.max_length",
    "MAX_TOKENS_PER_GPU": "data.max_token_len_per_gpu",
    "LORA_RANK": "model.lora_rank",
    "LORA_ALPHA": "model.lora_alpha",
}


def check(job: Job, rows: int | None, val_rows: int | None) -> Iterator[Finding]:
    """Everything about the numbers of an engine trainer.

    Args:
        rows, val_rows: that the trainer will see; None when not known.
    """
    knobs = {name: str(job.get(key, "")) for name, key in _SHARED.items()}
    knobs |= {"N_GPUS": str(job.ranks), "NNODES": "1", "SEQUENCE_PARALLEL_SIZE": str(job.sequence_parallel)}
    knobs["USE_DYNAMIC_BSZ"] = str(job.get("data.use_dynamic_bsz", False)).lower()
    knobs["USE_LORA"] = "true" if job.number("model.lora_rank", 0) != 0 else "false"
    packed = bool(job.get("model.use_remove_padding"))
    knobs["PACKING"] = str(packed).lower()
    known = _UNKNOWN_ROWS if rows is None else rows
    for line in engine_checks.check_batches(knobs, job.command.task, known) + checks.check_lora(knobs):
        yield error(line + origin(job, line, _SHARED), knob_of(line))
    budget = job.number("data.max_token_len_per_gpu")
    if knobs["USE_DYNAMIC_BSZ"] == "true" and budget < 1:  # the launcher takes 0 for its knob's default
        longest = job.longest * engine_checks.UNITS[job.command.task][1]
        least = -(-longest // max(1, job.sequence_parallel))
        yield error(f"data.max_token_len_per_gpu={budget} must be {least} or more", "MAX_TOKENS_PER_GPU")
    yield from sequence_parallel(job, packed)
    yield from fsdp_size(job, "engine.fsdp_size")
    yield from positions(job, job.longest, f"MAX_LENGTH={job.longest}")
    yield from optimiser(job, "optim")
    yield from _schedule(job)
    yield from _data(job, val_rows)
    if job.number("model.lora_rank", 0) > 0 and "hf_model" in list(job.get("checkpoint.save_contents", [])):
        yield error(
            "with LoRA verl exports hf_model under PEFT's names, which load as random weights: leave hf_model out of "
            "checkpoint.save_contents (python -m common.checkpoints export merges it later)",
            "USE_LORA",
        )


def _schedule(job: Job) -> Iterator[Finding]:
    ratio = job.get("optim.lr_warmup_steps_ratio", 0)
    if not 0 <= ratio <= 1:
        yield error(
            f"optim.lr_warmup_steps_ratio={ratio} is a share of all steps: between 0 and 1", "WARMUP_RATIO"
        )
    least = job.get("optim.min_lr_ratio", 0)
    if not 0 <= least <= 1:
        yield error(
            f"optim.min_lr_ratio={least} is a share of the learning rate: between 0 and 1",
            "optim.min_lr_ratio",
        )
    for key, knob in (("trainer.save_freq", "SAVE_FREQ"), ("trainer.test_freq", "TEST_FREQ")):
        value = job.get(key)
        if value == 0:
            yield error(
                f"{key}=0 makes verl divide by zero: use {knob}=0, which becomes -1 (only at the end)", knob
            )
        elif isinstance(value, str) and value != "after_each_epoch":
            yield error(f"{key}={value} must be a number of steps or after_each_epoch", knob)


def _data(job: Job, val_rows: int | None) -> Iterator[Finding]:
    pad = job.get("data.pad_mode", "no_padding")
    if pad != "no_padding":
        yield error(f"data.pad_mode={pad} stops verl's FSDP engine: only no_padding works", "data.pad_mode")
    truncation = job.get("data.truncation", "error")
    allowed = ("error", "left", "right") if job.command.task == "sft" else ("error", "drop", "cut")
    if truncation not in allowed:
        yield error(f"data.truncation={truncation} must be one of {', '.join(allowed)}", "TRUNCATION")
    if job.command.task != "sft":
        return
    test, batch = job.get("trainer.test_freq", -1), job.number("data.train_batch_size")
    if job.get("data.val_files") is None:
        if isinstance(test, str) or test > 0:
            yield error(
                f"trainer.test_freq={test} without data.val_files stops with a TypeError: set VAL_DATA, or TEST_FREQ=0",
                "VAL_DATA",
            )
    elif val_rows is not None and val_rows < batch:
        yield error(
            f"VAL_DATA has {val_rows} rows, fewer than TRAIN_BATCH_SIZE={batch} (validation uses it too and drops a "
            f"rest): val/loss would be nan; use TRAIN_BATCH_SIZE={max(1, val_rows)} or less, or more validation rows",
            "VAL_DATA",
        )
