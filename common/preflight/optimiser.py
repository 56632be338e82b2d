"""The optimiser of policy, critic, SFT or DPO: values that stop verl in the first update, or teach nothing."""

from __future__ import annotations

from collections.abc import Iterator

from common.preflight import names
from common.preflight.finding import Finding, error, warning
from common.preflight.job import Job

_SCHEDULES = ("constant", "cosine")


def optimiser(job: Job, group: str) -> Iterator[Finding]:
    """Everything under *group*, a key such as ``optim``."""
    yield from _rate(job, group)
    clip, decay = job.get(f"{group}.clip_grad", 1), job.get(f"{group}.weight_decay", 0)
    if clip <= 0:
        yield error(
            f"{group}.clip_grad={clip} must be above 0: gradients would be scaled to nothing",
            f"{group}.clip_grad",
        )
    if isinstance(decay, int | float) and decay < 0:
        yield error(
            f"{job.name(f'{group}.weight_decay')}={decay} must be 0 or more (0.01 is usual): torch refuses it",
            job.name(f"{group}.weight_decay"),
        )
    betas = job.get(f"{group}.betas", [])
    if isinstance(betas, list) and any(not isinstance(b, int | float) or not 0 <= b < 1 for b in betas):
        yield error(
            f"{group}.betas={betas} must each be 0 or more and below 1 ([0.9,0.999] is usual)",
            f"{group}.betas",
        )
    name, known = str(job.get(f"{group}.optimizer", "AdamW")), names.optimisers()
    if known and job.get(f"{group}.optimizer_impl") == "torch.optim" and name not in known:
        yield error(
            f"{group}.optimizer={name} is none that torch.optim has{names.suggest(name, known)}",
            f"{group}.optimizer",
        )
    schedule = job.get(f"{group}.lr_scheduler_type", "constant")
    if schedule not in _SCHEDULES:
        yield error(
            f"{group}.lr_scheduler_type={schedule}: verl's engine knows constant and cosine; use one of them",
            f"{group}.lr_scheduler_type" if job.rl else "LR_SCHEDULER",
        )


def _rate(job: Job, group: str) -> Iterator[Finding]:
    name, rate = job.name(f"{group}.lr"), job.get(f"{group}.lr")
    knob, usual = "LEARNING_RATE", "1e-6 is usual for a policy"
    if group == "critic.optim":
        knob, usual = "CRITIC_LEARNING_RATE", "1e-5 is usual for a critic"
    if isinstance(rate, int | float) and rate <= 0:
        yield error(f"{name}={rate} must be above 0 ({usual})", knob)
    elif isinstance(rate, int | float) and rate > 1e-2:
        yield warning(f"{name}={rate} is a thousand times what is usual: is a minus sign missing?", knob)
