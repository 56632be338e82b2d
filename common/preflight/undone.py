"""Keys that quietly undo what a knob promised: no metrics to watch, no checkpoint to keep or to resume from."""

from __future__ import annotations

from collections.abc import Iterator

from common.preflight import names
from common.preflight.finding import Finding, error, warning
from common.preflight.job import ACTOR, Job

_PARTS = ("model", "optimizer", "extra", "hf_model")


def check(job: Job) -> Iterator[Finding]:
    """The resolved values against the launch's own knobs."""
    yield from _metrics(job)
    yield from _saves(job)
    groups = [f"{ACTOR}.checkpoint", *(["critic.checkpoint"] if job.needs_critic else [])]
    for group in groups if job.rl else ["checkpoint"]:
        yield from _contents(job, group)


def _metrics(job: Job) -> Iterator[Finding]:
    wanted = job.get("trainer.logger", [])
    loggers = [wanted] if isinstance(wanted, str) else list(wanted)
    if job.record and "file" not in loggers:
        yield error(
            f"trainer.logger={loggers} writes no metrics file, so the monitor, STOP_ON and KEEP_BEST would see "
            f"nothing: use [{','.join(map(str, [*loggers, 'file']))}], or LOGGERS, which adds to it",
            "LOGGERS",
        )


def _saves(job: Job) -> Iterator[Finding]:
    knobs = job.record.get("knobs", {})
    save, test = job.get("trainer.save_freq", -1), job.get("trainer.test_freq", -1)
    best, rounds = knobs.get("KEEP_BEST") == "true", int(knobs.get("SELF_PLAY_ROUNDS") or 1)
    never = job.rl and isinstance(save, int) and save < 1
    name = job.name("trainer.save_freq")
    if never and rounds > 1:
        yield error(
            f"{name}={save} writes no checkpoint, and each of the SELF_PLAY_ROUNDS={rounds} starts from the one "
            "before: use 1 or more",
            "SAVE_FREQ",
        )
    if never and best:
        yield error(
            f"{name}={save} writes no checkpoint, so KEEP_BEST has none to keep: use 1 or more", "SAVE_FREQ"
        )
    if best and isinstance(save, int) and isinstance(test, int) and save > 0 and (test < 1 or save % test):
        yield error(
            f"KEEP_BEST needs a validation of every checkpoint: trainer.test_freq={test} does not divide "
            f"trainer.save_freq={save}; use {_divisor(save, test)}",
            "TEST_FREQ",
        )


def _divisor(value: int, near: int) -> int:
    return min((d for d in range(1, value + 1) if value % d == 0), key=lambda d: abs(d - near))


def _contents(job: Job, group: str) -> Iterator[Finding]:
    """A resume loads what was saved: load_contents follows save_contents unless it is set."""
    for key in (f"{group}.save_contents", f"{group}.load_contents"):
        for word in _listed(job, key):
            if word not in _PARTS:
                yield error(f"{key}: verl knows no part '{word}'{names.suggest(word, _PARTS)}", key)
    key = f"{group}.save_contents"
    saved = _listed(job, key)
    if job.get(key) is None:
        return
    lost = [part for part in ("optimizer", "extra") if part not in saved]
    if "model" not in saved:
        yield error(
            f"{key}=[{','.join(saved)}] leaves model out: a resume would start from the untrained weights; use "
            f"[{','.join(['model', *saved])}]",
            key,
        )
    elif lost:
        yield warning(
            f"{key}=[{','.join(saved)}] leaves {' and '.join(lost)} out: a resume starts without "
            "(optimizer: its moments; extra: the learning rate's schedule and the random state)",
            key,
        )


def _listed(job: Job, key: str) -> list[str]:
    value = job.get(key, [])
    return [str(word) for word in ([value] if isinstance(value, str) else value)]
