"""All methods: length of the run, saving, resuming, loggers, attention, multi-node paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from common.launcher import checks
from common.preflight import names
from common.preflight.finding import Finding, error, note, warning
from common.preflight.job import Job
from common.system import existing


def check(job: Job) -> Iterator[Finding]:
    """What `trainer.*` decides."""
    yield from _length(job)
    yield from _folder(job)
    yield from _loggers(job)
    yield from _attention(job)
    yield from _devices(job)
    if job.rl and not job.machine.importable("transfer_queue") and job.get("trainer.use_v1", True):
        yield error("TransferQueue, on which verl's trainer runs, is not installed: run ./setup_env.sh")


def _length(job: Job) -> Iterator[Finding]:
    for key in (
        "trainer.total_epochs",
        "trainer.total_training_steps",
        "trainer.n_gpus_per_node",
        "trainer.nnodes",
    ):
        value = job.get(key)
        if isinstance(value, int) and value < 1:
            yield error(
                f"{job.name(key)}={value} must be 1 or more" + (" (or null)" if "steps" in key else ""),
                job.name(key),
            )
    mode, modes = str(job.get("trainer.v1.trainer_mode", "sync")), names.trainer_modes()
    if job.rl and mode not in modes:
        yield error(
            f"trainer.v1.trainer_mode={mode} is none that verl knows{names.suggest(mode, modes)}",
            "trainer.v1.trainer_mode",
        )
    saves = job.get("trainer.save_freq", -1)
    if job.rl and (saves == -1 or saves == 0):
        yield note("SAVE_FREQ=0: no checkpoint will be written, not even at the end", "SAVE_FREQ")
    key = "trainer.max_actor_ckpt_to_keep" if job.rl else "trainer.max_ckpt_to_keep"
    keep = job.get(key)
    if isinstance(keep, int) and keep < 1:
        yield error(
            f"{job.name(key)}={keep} must be 1 or more, or null for all",
            "KEEP_CHECKPOINTS",
        )


def _folder(job: Job) -> Iterator[Finding]:
    mode = job.get("trainer.resume_mode", "auto")
    if mode not in ("auto", "disable", "resume_path"):
        yield error(f"trainer.resume_mode={mode} must be auto, disable or resume_path", "RESUME")
    path = job.get("trainer.resume_from_path")
    if mode == "resume_path" and ("global_step_" not in str(path) or not Path(str(path)).is_dir()):
        yield error(
            "trainer.resume_mode=resume_path needs trainer.resume_from_path=.../global_step_N, a folder that is there; "
            f"it is {path}",
            "RESUME",
        )
    folder = Path(str(job.get("trainer.default_local_dir", "")))
    if not folder.is_absolute():
        yield error(
            f"trainer.default_local_dir={folder} is relative, and verl's workers run elsewhere: use OUTPUT_DIR, which "
            "becomes absolute",
            "OUTPUT_DIR",
        )
        return
    if not os.access(existing(folder), os.W_OK):
        yield error(f"OUTPUT_DIR: no permission to write in {existing(folder)}", "OUTPUT_DIR")
    last = folder / "latest_checkpointed_iteration.txt"
    if (
        last.is_file()
        and mode == "auto"
        and not job.record.get("attempts", [{}])[-1].get("resumed_from_step")
    ):
        yield warning(
            f"{folder} holds checkpoints: verl goes on from step {last.read_text().strip()} (resume_mode=auto)",
            "RESUME",
        )
    if job.number("trainer.nnodes") > 1:
        yield from _shared_paths(job, folder)


def _shared_paths(job: Job, folder: Path) -> Iterator[Finding]:
    """On several nodes every path must mean the same everywhere."""
    places = {
        "OUTPUT_DIR": folder,
        "MODEL_PATH": Path(job.model) if job.model.startswith("/") else None,
        "TRAIN_DATA": Path(str(job.get("data.train_files")))
        if isinstance(job.get("data.train_files"), str)
        else None,
    }
    for knob, path in places.items():
        if path is not None and not job.machine.shared(path):
            kind = job.machine.filesystem(path)
            cache = " (VERL_TRAINING_CACHE moves the converted data)" if knob == "TRAIN_DATA" else ""
            yield warning(
                f"{knob}: {existing(path)} is on {kind}, which others do not see: all {job.number('trainer.nnodes')} "
                f"nodes need it at this path{cache}",
                knob,
            )


def _loggers(job: Job) -> Iterator[Finding]:
    wanted = job.get("trainer.logger", [])
    for name in [wanted] if isinstance(wanted, str) else list(wanted):
        if name not in names.LOGGERS:
            yield error(
                f"trainer.logger: verl knows no logger '{name}'{names.suggest(str(name), names.LOGGERS)}",
                "LOGGERS",
            )
        elif names.LOGGERS[name] and not job.machine.importable(names.LOGGERS[name]):
            yield error(
                f"LOGGERS={name}: its package is not installed: pip install {names.LOGGERS[name]}",
                "LOGGERS",
            )
        elif name == "wandb":
            mode = job.machine.environment.get("WANDB_MODE", "")
            if (
                not mode
                and checks.wandb_mode({"USE_WANDB": "true"}, dict(job.machine.environment))[0] != "online"
            ):
                yield error(
                    "trainer.logger has wandb, but there is no login and the run would stop to ask for one: use "
                    "--use_wandb, which writes offline then, or log in with wandb login",
                    "USE_WANDB",
                )
            mode = mode or "online"
            yield note(f"Weights & Biases: {mode}, project {job.get('trainer.project_name')}", "USE_WANDB")


def _attention(job: Job) -> Iterator[Finding]:
    """verl's default is flash_attention_2, whatever is installed."""
    groups = [job.model_key, *(["critic.model"] if job.needs_critic else [])]
    for group in groups:
        attention = job.get(f"{group}.override_config.attn_implementation", "flash_attention_2")
        if attention != "flash_attention_2":
            continue
        where = f"+{group}.override_config.attn_implementation=sdpa"
        if not job.on_gpu:
            yield error(f"{group} would use flash_attention_2, which needs a GPU: add {where}")
        elif not job.machine.importable("flash_attn"):
            yield error(f"{group} would use flash_attention_2, but flash-attn is not installed: add {where}")
    strategy = job.get("actor_rollout_ref.actor.strategy" if job.rl else "engine.strategy", "fsdp")
    if not job.on_gpu and strategy == "fsdp":
        yield error("STRATEGY=fsdp needs a GPU: a run on the CPU uses fsdp2", "STRATEGY")


def _devices(job: Job) -> Iterator[Finding]:
    device, platform = job.get("trainer.device"), job.machine.environment.get("VERL_PLATFORM", "")
    if platform == "cpu" and device != "cpu":
        yield error(
            f"trainer.device={device}, but this is a launch on the CPU: use --device gpu, or leave the key out",
            "DEVICE",
        )
    elif platform != "cpu" and device == "cpu":
        yield error(
            "trainer.device=cpu needs the CPU plugin: use --device cpu, which sets all of it", "DEVICE"
        )
