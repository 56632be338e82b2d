"""All checks of one launch, gathered; verl's own runs beside them in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.launcher.errors import UserError
from common.preflight import (
    algorithm,
    batches,
    cost,
    engine_task,
    hardware,
    keys,
    models,
    reward,
    rollout,
    rows,
    trainer_checks,
    undone,
)
from common.preflight.command import Command
from common.preflight.composing import added_keys, base_of, compose, wrong_types
from common.preflight.cost import Cost
from common.preflight.finding import ERROR, Finding, error, forced, ordered
from common.preflight.job import Job
from common.preflight.machine import Machine
from common.preflight.rows import Rows
from common.preflight.verl_check import Asked, Opinion


@dataclass
class Report:
    """What the screen shows.

    Attributes:
        what: names and values of what will run, in order.
        cost: memory, disk, time; None where the config could not even be read.
    """

    what: dict[str, str] = field(default_factory=dict)
    cost: Cost | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """How many findings stop the launch."""
        return sum(finding.severity == ERROR for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The report for programs."""
        return {
            "ok": not self.errors,
            "what": self.what,
            "cost": asdict(self.cost) if self.cost else None,
            "findings": [asdict(finding) for finding in self.findings],
        }


def examine(
    command: Command,
    machine: Machine,
    record: Mapping[str, Any],
    force: bool = False,
    socket: Path | None = None,
) -> Report:
    """Compose the config and check it.

    Args:
        record: what the launcher planned, {} when there is no launcher.
        force: errors become warnings.
        socket: where a process that the launcher started has verl imported; None starts one.
    """
    # The launcher's own words for SFT and DPO are checked knobs, and verl has no more to say about them.
    ask = bool(command.task == "rl" or not record or record.get("extra"))
    with ExitStack() as stack:
        asked = stack.enter_context(Asked(socket)) if ask else None
        try:
            config, base = compose(command), base_of(command)
        except UserError as problem:
            # Not for --force: there is no config to go on with.
            return Report(findings=[error(line) for line in str(problem).splitlines()])
        if asked:
            asked.send(config, added_keys(command, base), machine.environment)
        report = check(Job(command, config, base, machine, dict(record)), asked.answer if asked else Opinion)
    report.findings = ordered(forced(report.findings) if force else report.findings)
    return report


def check(job: Job, opinion: Callable[[], Opinion]) -> Report:
    """Run every check on a composed job; *opinion* is called when only verl's own answer is left."""
    types = [
        error(line, line.partition("=")[0])
        for line in wrong_types(job.config, job.base, job.command.overrides)
    ]
    if types:  # arithmetic on a word would only confuse
        return Report(findings=types)
    data, found = rows.look(job)
    steps = int(job.record.get("total_steps") or 0) or _steps(job, data)
    found += list(rows.check(job, data))
    if job.rl:
        found += [*batches.check(job, data.train), *rollout.check(job), *reward.check(job)]
    else:
        found += list(engine_task.check(job, data.train, data.val))
    found += [*keys.check(job), *models.check(job), *undone.check(job)]
    found += [*trainer_checks.check(job), *hardware.check(job)]
    costs, more = cost.look(job, steps)
    said = opinion()
    found += [*more, *_of_verl(said)]
    if job.rl:
        found += list(algorithm.check(job, said.estimators, said.losses))
    return Report(_what(job, data, steps), costs, ordered(found))


def _of_verl(opinion: Opinion) -> Iterator[Finding]:
    if opinion.failed:
        yield error(f"verl itself could not be asked: {opinion.failed}")
    for line in opinion.problems:
        yield error(line)


def _steps(job: Job, data: Rows) -> int:
    """Steps of the run as verl computes them; 0 when the rows are not known."""
    wanted = job.number("trainer.total_training_steps", 0)
    if wanted > 0 or data.train is None:
        return max(0, wanted)
    return data.train // max(1, job.number("data.train_batch_size")) * job.number("trainer.total_epochs")


def _what(job: Job, data: Rows, steps: int) -> dict[str, str]:
    batch, answers = (
        job.number("data.train_batch_size"),
        job.number("actor_rollout_ref.rollout.n") if job.rl else 1,
    )
    unit = {"rl": "answers", "sft": "conversations", "preference": "pairs"}[job.command.task]
    samples = batch * answers
    sequences = samples * (2 if job.command.task == "preference" else 1)
    places = f"{job.number('trainer.nnodes')} x {job.number('trainer.n_gpus_per_node')}"
    shown = {
        "method": _method(job),
        "model": job.model
        + (
            f", LoRA rank {job.number(f'{job.model_key}.lora_rank', 0)}"
            if job.get(f"{job.model_key}.lora_rank")
            else ""
        ),
        "data": f"{_count(data.train)} rows, {_count(data.val)} for validation" + _prompt_lengths(job, data),
        "steps": f"{steps or 'unknown'}"
        + (
            f" (epochs: {job.get('trainer.total_epochs')})"
            if not job.get("trainer.total_training_steps")
            else ""
        ),
        "each step": f"{samples} {unit}"
        + (f" ({batch} prompts x {answers})" if job.rl else "")
        + f", at most {sequences * job.longest:,} tokens",
        "on": f"{places} {'GPUs' if job.on_gpu else 'CPU processes'}"
        + (f" ({job.machine.gpus[0].name})" if job.machine.gpus else ""),
    }
    if job.record.get("run"):
        shown = {"run": f"{job.record['method']}/{job.record['run']}", **shown}
    return shown


def _method(job: Job) -> str:
    if not job.rl:
        loss = job.get("dpo.loss_type")
        return job.command.method + (f", loss {loss}" if loss else "")
    loss = job.get("actor_rollout_ref.actor.policy_loss.loss_mode", "vanilla")
    kl = " and ".join(
        w
        for w, used in (
            ("KL in the reward", job.get("algorithm.use_kl_in_reward")),
            ("KL in the loss", job.get("actor_rollout_ref.actor.use_kl_loss")),
        )
        if used
    )
    return (
        f"{job.command.method}: advantage {job.get('algorithm.adv_estimator')}, loss {loss}, {kl or 'no KL'}"
    )


def _prompt_lengths(job: Job, data: Rows) -> str:
    found = data.lengths
    if not job.rl or not found.get("median"):
        return ""
    over = f", {found['over_prompt']} of {found['rows']} left out" if found.get("over_prompt") else ""
    return (
        f"; prompts of {found['median']} tokens (median), {found['p95']} (95 %; sample of {found['sampled']}), limit "
        f"{job.number('data.max_prompt_length', 0)}{over}; room for answers {job.number('data.max_response_length', 0)}"
    )


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
