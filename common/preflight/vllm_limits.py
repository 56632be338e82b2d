"""RL: the lengths that vLLM, or verl's server around it, refuses when it starts."""

from __future__ import annotations

from collections.abc import Iterator

from common.preflight.finding import Finding, error, note
from common.preflight.job import ROLLOUT, Job


def check(job: Job) -> Iterator[Finding]:
    """Length and batch of one engine, as ``vllm_async_server._validate_configs`` and vLLM's scheduler want them."""
    if job.get(f"{ROLLOUT}.name") != "vllm":
        return
    key, most = f"{ROLLOUT}.max_model_len", job.positions
    room = job.number(key, 0)
    if (
        most is not None and room > most >= job.longest
    ):  # more than the sequences themselves: `positions` tells
        yield error(
            f"{key}={room} is above the model's {most} positions, which verl refuses: use {most} or less", key
        )
    key = f"{ROLLOUT}.max_num_batched_tokens"
    batched, sequences = job.number(key, 8192), job.number(f"{ROLLOUT}.max_num_seqs", 1024)
    whole = room or most or job.longest
    if not job.get(f"{ROLLOUT}.enable_chunked_prefill", True) and batched < whole:
        yield note(
            f"verl raises {key} from {batched} to {whole}: with enable_chunked_prefill=False a whole sequence must fit"
        )
        batched = whole
    if batched < sequences:
        yield error(
            f"{key}={batched} is below {ROLLOUT}.max_num_seqs={sequences}, which vLLM refuses: use {sequences} tokens "
            f"or more, or max_num_seqs={max(1, batched)} or less",
            key,
        )
