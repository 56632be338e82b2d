"""What SFT and DPO refuse before torchrun starts: their batch arithmetic and what several nodes need.

Sources: ``verl.trainer.sft_trainer``, ``verl.workers.engine.utils.prepare_micro_batches`` and
``verl.utils.seqlen_balancing`` of verl 0.9.1, which check almost none of it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from common.launcher.checks import at_least_one, no_rows_fit, number

UNITS = {"sft": ("rows", 1), "preference": ("pairs", 2)}


def attention(device: str) -> str:
    """``flash_attention_2`` where it can run, else ``sdpa`` over packed rows (common/packed_sdpa.py)."""
    return "flash_attention_2" if device == "gpu" and find_spec("flash_attn") else "sdpa"


def nearest(value: int, step: int) -> str:
    """The multiples of *step* on both sides of *value*, as words."""
    below, above = value // step * step, -(-value // step) * step
    return f"{above}" if below in (0, above) else f"{below} or {above}"


def check_batches(knobs: dict[str, str], task: str, train_rows: int) -> list[str]:
    """One line per mistake in the batch arithmetic.

    Args:
        task: "sft" or "preference"; a pair is two sequences that stay together.
        train_rows: rows that verl will see.
    """
    unit, sequences = UNITS[task]
    batch, ranks = number(knobs, "TRAIN_BATCH_SIZE"), number(knobs, "N_GPUS") * number(knobs, "NNODES")
    sp, micro = number(knobs, "SEQUENCE_PARALLEL_SIZE"), number(knobs, "MICRO_BATCH_SIZE")
    problems = at_least_one(knobs, "TRAIN_BATCH_SIZE", "MAX_LENGTH")
    if problems:
        return problems
    if ranks % sp:
        return [f"SEQUENCE_PARALLEL_SIZE={sp} does not divide {ranks} GPUs (N_GPUS x NNODES): use a divisor"]
    if sp > 1 and knobs.get("PACKING") == "false":
        problems.append(f"SEQUENCE_PARALLEL_SIZE={sp} needs PACKING=true")
    ways = ranks // sp
    if batch % ways:
        problems.append(
            f"TRAIN_BATCH_SIZE={batch} must divide by {ways} data-parallel ranks: use {nearest(batch, ways)}"
        )
    elif knobs.get("USE_DYNAMIC_BSZ") == "false" and (micro < 1 or batch // ways % micro):
        divisors = [d for d in range(1, batch // ways + 1) if batch // ways % d == 0]
        problems.append(
            f"MICRO_BATCH_SIZE={micro} does not divide the {batch // ways} {unit} of each rank "
            f"(TRAIN_BATCH_SIZE / ranks = {batch} / {ways}): use {min(divisors, key=lambda d: abs(d - micro))}"
        )
    longest, budget = sequences * number(knobs, "MAX_LENGTH"), number(knobs, "MAX_TOKENS_PER_GPU", 0)
    if knobs.get("USE_DYNAMIC_BSZ") == "true" and 0 < budget * sp < longest:
        what = "MAX_LENGTH" if sequences == 1 else f"{sequences} x MAX_LENGTH (a pair stays together)"
        problems.append(
            f"MAX_TOKENS_PER_GPU={budget} (x {sp} sequence parallel) is below {what} = {longest}: "
            f"use {-(-longest // sp)} or more"
        )
    if train_rows < 1:
        problems.append(no_rows_fit(unit, "MAX_LENGTH"))
    elif train_rows < batch:
        problems.append(
            f"TRAIN_DATA has {train_rows} {unit} that fit, fewer than TRAIN_BATCH_SIZE={batch}: no step could "
            f"run; use TRAIN_BATCH_SIZE={max(1, train_rows // ways * ways)} or less, more data, or a longer MAX_LENGTH"
        )
    return problems


def check_nodes(knobs: dict[str, str]) -> list[str]:
    """What torchrun needs on every one of several nodes."""
    nodes, rank = number(knobs, "NNODES"), number(knobs, "NODE_RANK", 0)
    if nodes == 1 and rank == 0:
        return []
    problems = []
    if not 0 <= rank < nodes:
        problems.append(f"NODE_RANK={rank} must be between 0 and NNODES - 1 = {nodes - 1}")
    if not knobs.get("MASTER_ADDR"):
        problems.append(f"NNODES={nodes} needs MASTER_ADDR: the address of the node with NODE_RANK=0")
    if not knobs.get("EXPERIMENT_NAME"):
        problems.append(f"NNODES={nodes} needs EXPERIMENT_NAME, the same on every node")
    return problems


def node_folder(logs: Path, name: str, rank: int) -> Path:
    """Run folder of a node; those of the others lie beside the runs, out of every list of runs."""
    return logs / name if rank == 0 else logs / ".nodes" / name / str(rank)
