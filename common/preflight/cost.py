"""What a run costs: memory by phase (common.memory), checkpoints on disk, and time where earlier runs tell it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.launcher.summary import read_metrics
from common.preflight.finding import Finding, error, note, warning
from common.preflight.job import ROLLOUT, Job, read_model_config
from common.system import existing

_GIB = 1024**3
_MIB = 1024**2
# The estimate's own margin: above it a phase cannot fit, near it it may not.
_MARGIN, _TIGHT = 1.15, 0.92
_TIMES = ("perf/time_per_step", "timing_s/step")
# What a step's time depends on; an earlier run that differs in one of them tells nothing.
_SAME = (
    *(
        "MODEL_PATH",
        "DEVICE",
        "N_GPUS",
        "NNODES",
        "TRAIN_BATCH_SIZE",
        "MINI_BATCH_SIZE",
        "ROLLOUT_N",
        "MAX_PROMPT_LENGTH",
    ),
    *(
        "MAX_RESPONSE_LENGTH",
        "MAX_LENGTH",
        "USE_LORA",
        "CPU_DTYPE",
        "STRATEGY",
        "OFFLOAD",
        "GRADIENT_CHECKPOINTING",
    ),
    *("MAX_TOKENS_PER_GPU", "USE_DYNAMIC_BSZ", "TRAIN_DATA", "SEQUENCE_PARALLEL_SIZE", "ROLLOUT_TP_SIZE"),
)


@dataclass
class Cost:
    """What is known about the cost; None and 0 where it is not.

    Attributes:
        phases: (name, GPU bytes, host bytes, parts) in the order of a step.
        checkpoint, checkpoints: bytes of one, and how many lie on the disk at once at most.
        seconds_per_step, like: the median of an earlier run with the same settings, and its name.
    """

    phases: list[tuple[str, int, int, dict[str, int]]]
    parameters: int = 0
    trainable: int = 0
    checkpoint: int = 0
    checkpoints: int = 0
    disk_free: int = 0
    seconds_per_step: float | None = None
    like: str = ""


def look(job: Job, steps: int) -> tuple[Cost, list[Finding]]:
    """The cost of *job*, and what does not fit.

    Args:
        steps: of the whole run; 0 when not known.
    """
    cost, found = Cost([]), []
    try:
        from common.memory import estimate as memory_of

        request = _request(job)
        estimate = memory_of(**request, gpu_memory=_gpu_memory(job))
    except (
        Exception
    ) as problem:  # a family it does not know, a config.json with holes: an estimate is only advice
        first = (str(problem).splitlines() or [""])[0] or type(problem).__name__
        found.append(note(f"no memory estimate for this model: {first}"))
    else:
        cost.phases = [(p.name, p.gpu_bytes, p.host_bytes, dict(p.parts)) for p in estimate.phases]
        cost.parameters, cost.trainable = estimate.parameters, estimate.trainable
        cost.checkpoint = estimate.checkpoint_bytes
        found += list(_memory(job, cost, request))
        if job.rl and estimate.gpu_memory and estimate.kv_tokens < estimate.kv_needed:
            found.append(_cache_shortage(job, estimate.kv_tokens, estimate.kv_needed))
    found += list(_disk(job, cost, steps))
    cost.seconds_per_step, cost.like = earlier_time(job)
    return cost, found


def _cache_shortage(job: Job, holds: int, needed: int) -> Finding:
    """Where max_model_len is null, the model's whole length counts, whatever the run's own limits are."""
    text, key = (
        f"vLLM's cache would hold {holds} tokens, one sequence needs {needed}",
        f"{ROLLOUT}.max_model_len",
    )
    more = "raise GPU_MEMORY_UTILIZATION or ROLLOUT_TP_SIZE"
    if job.get(key) is None and job.longest < needed:
        rest = "" if job.longest <= holds else f", and {more}"
        return error(
            f"{text}, as {key}=null means all of the model's positions: set {key}={job.longest} "
            f"(max_prompt_length + max_response_length){rest}",
            key,
        )
    return error(f"{text}: {more}, or shorten MAX_RESPONSE_LENGTH", "GPU_MEMORY_UTILIZATION")


def _request(job: Job) -> dict[str, Any]:
    """What `common.memory` is asked about this job."""
    model = job.model_config()
    if not model:
        raise ValueError("its config.json is not at hand")
    critic = read_model_config(str(job.get("critic.model.path", ""))) if job.needs_critic else {}
    reward = read_model_config(str(job.get("reward.reward_model.model_path", ""))) if job.rl else {}
    return {
        "config": job.resolved,
        "model_config": model,
        "gpus": job.number("trainer.n_gpus_per_node"),
        "nodes": job.number("trainer.nnodes"),
        "device": "cuda" if job.on_gpu else "cpu",
        "critic_config": critic or None,
        "reward_config": reward or None,
    }


def _gpu_memory(job: Job) -> int | None:
    """Bytes of the smallest GPU; None where there is none to look at."""
    total = [each.memory_total for each in job.machine.gpus if each.memory_total]
    return min(total) * _MIB if total else None


def _memory(job: Job, cost: Cost, request: dict[str, Any]) -> Iterator[Finding]:
    gpu = _gpu_memory(job)
    if job.on_gpu and gpu:
        name, size, _, parts = max(cost.phases, key=lambda phase: phase[1])
        if size > _TIGHT * gpu:
            text = _shortage(name, size, gpu, "a GPU has", parts, _advice(job, request, gpu))
            yield (error if size > _MARGIN * gpu else warning)(text, "MAX_TOKENS_PER_GPU")
    name, _, size, parts = max(cost.phases, key=lambda phase: phase[2])
    total, free, shown = job.machine.ram_total, job.machine.ram_free, {} if job.on_gpu else parts
    if size <= _TIGHT * free:
        return
    advice = "use fewer GPUs per node" if job.on_gpu else _advice(job, request, total)
    if size > _MARGIN * total:
        yield error(_shortage(name, size, total, "this machine has", shown, advice), "MAX_TOKENS_PER_GPU")
    else:  # what is free now may be more in a minute
        advice = f"end other programs, or {advice}"
        yield warning(_shortage(name, size, free, "host memory free is", shown, advice), "MAX_TOKENS_PER_GPU")


def _shortage(name: str, needed: int, there: int, where: str, parts: dict[str, int], advice: str) -> str:
    largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
    shown = f" ({', '.join(f'{part} {size / _GIB:.1f}' for part, size in largest)})" if largest else ""
    return f"{name} takes about {needed / _GIB:.1f} GiB{shown}, {where} {there / _GIB:.1f} GiB: {advice}"


def _advice(job: Job, request: dict[str, Any], memory: int) -> str:
    """The largest micro-batch that fits, or what else there is."""
    from common.memory.fit import largest

    fit = largest(**request, memory=memory)
    rest = "OFFLOAD=true, LoRA or more GPUs" if job.on_gpu else "LoRA or a smaller model"
    if fit.value < max(1, fit.smallest):
        return f"no {fit.knob} fits; use {rest}"
    return f"use {fit.knob}={fit.value} or less, {rest}"


def kept_at_once(keep: Any, saves: int) -> int:
    """Checkpoints on disk at the worst moment, as verl's ``CheckpointManager`` keeps them.

    With 1 it writes the new one before it removes the old one; with more it makes room first.
    """
    if not isinstance(keep, int):
        return saves
    return min(saves, 2 if keep == 1 else keep)


def _disk(job: Job, cost: Cost, steps: int) -> Iterator[Finding]:
    frequency = job.get("trainer.save_freq", -1)
    every = frequency if isinstance(frequency, int) and frequency > 0 else 0
    folder = Path(str(job.get("trainer.default_local_dir", "")))
    if not folder.is_absolute() or (job.rl and not every):
        return
    # The last step is saved too; engine trainers save it in any case.
    saves = (-(-steps // every) if every and steps else 1) if steps else 1
    knobs = job.record.get("knobs", {})
    keep = job.get("trainer.max_actor_ckpt_to_keep" if job.rl else "trainer.max_ckpt_to_keep")
    if knobs.get("KEEP_BEST") == "true" and int(knobs.get("KEEP_CHECKPOINTS", 0)) > 0:
        keep = int(knobs["KEEP_CHECKPOINTS"]) + 2  # the best one, and the new one before an old one goes
    elif isinstance(keep, int) and int(knobs.get("SELF_PLAY_ROUNDS", 1)) > 1:
        keep += 1  # the one that a round started from
    cost.checkpoints, cost.disk_free = kept_at_once(keep, saves), job.machine.disk_free(folder)
    needed = cost.checkpoint * cost.checkpoints
    if needed <= cost.disk_free:
        return
    fitting = cost.disk_free // max(1, cost.checkpoint)
    advice = (
        f"KEEP_CHECKPOINTS={fitting if fitting > 2 else 1}" if fitting > 1 else "another disk (OUTPUT_DIR)"
    )
    yield error(
        f"up to {cost.checkpoints} checkpoints of {cost.checkpoint / _GIB:.1f} GiB = {needed / _GIB:.1f} GiB are kept, "
        f"{existing(folder)} has {cost.disk_free / _GIB:.1f} GiB free: use {advice}, or a larger SAVE_FREQ",
        "KEEP_CHECKPOINTS",
    )


def earlier_time(job: Job) -> tuple[float | None, str]:
    """Median seconds of a step in the newest run of this method with the same settings on this host, and its name."""
    record = job.record
    if not record:
        return None, ""
    logs = Path(record["checkpoint_dir"]).parents[2] / "logs" / record["method"]
    folders = sorted(logs.glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in folders[:20]:
        try:
            times = _times_if_alike(path, record)
        # Whatever another run's files hold, they must not keep this one from starting.
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            continue
        if len(times) >= 3:
            return statistics.median(times[1:]), path.parent.name
    return None, ""


def _times_if_alike(path: Path, record: dict[str, Any]) -> list[float]:
    """Seconds of each step of the run at *path*; [] where it ran otherwise or elsewhere."""
    import socket

    before = json.loads(path.read_text(encoding="utf-8"))
    same = all(before["knobs"].get(name) == record["knobs"].get(name) for name in _SAME)
    here = before["attempts"][-1].get("host") == socket.gethostname()
    alike = same and here and before.get("extra") == record.get("extra")
    return _step_times(path.parent, before) if alike else []


def _step_times(folder: Path, record: dict[str, Any]) -> list[float]:
    found = []
    for _, data in read_metrics(folder, record):
        value = next((data[name] for name in _TIMES if isinstance(data.get(name), int | float)), None)
        if value:
            found.append(float(value))
    return found
