"""RL: DAPO's filter, which drops prompts whose answers all score alike, and what it needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from common.preflight.finding import Finding, error
from common.preflight.job import ROLLOUT, Job

_GROUP = "algorithm.filter_groups"
_MODEL = "reward.reward_model"
_SAMPLER = "trainer.v1.sampler.custom_sampler.path"
_LIBRARY = Path(__file__).resolve().parents[1] / "reward_functions"
# verl sums the rewards itself for `reward`; its managers report the others, or the reward's own dict does.
_USUAL = {"reward", "acc", "score", "overlong_reward", "overlong"}


def check(job: Job) -> Iterator[Finding]:
    """Where the filter has no effect, or stops the run in its first step."""
    if not job.get(f"{_GROUP}.enable"):
        return
    yield from _metric(job)
    if job.get(f"{_MODEL}.enable") and not job.get(f"{_MODEL}.enable_resource_pool"):
        yield error(
            f"{_GROUP}.enable=True needs each score as soon as it is sampled, but a reward model that shares the GPUs "
            f"scores afterwards: set {_MODEL}.enable_resource_pool=True, or use a reward function",
            _GROUP,
        )
    if not job.get("trainer.use_v1", True):
        yield error(
            f"{_GROUP}.enable=True has no effect with trainer.use_v1=False: leave one of them out", _GROUP
        )
    elif job.get(_SAMPLER):  # REPRODUCIBLE=true sets it too
        yield error(
            f"{_GROUP}.enable=True has no effect with {_SAMPLER}={job.get(_SAMPLER)}, which verl gives no filter: "
            f"leave one of them out{'' if job.users(_SAMPLER) else ' (REPRODUCIBLE=true sets it)'}",
            _GROUP,
        )
    if job.get(f"{_GROUP}.max_num_gen_batches", 0) > 0:
        yield error(
            f"{_GROUP}.max_num_gen_batches has no effect in verl 0.9.1 (there is no upper bound): leave it out",
            _GROUP,
        )
    if job.number(f"{ROLLOUT}.n") < 2:
        yield error(
            f"{_GROUP}.enable=True drops groups whose answers score alike, which is every group of one",
            "ROLLOUT_N",
        )


def _metric(job: Job) -> Iterator[Finding]:
    metric = job.get(f"{_GROUP}.metric")
    if not metric:
        yield error(f"{_GROUP}.enable=True needs {_GROUP}.metric, e.g. reward", _GROUP)
    elif metric not in _USUAL and not _mentioned(job, str(metric)):
        yield error(
            f"{_GROUP}.metric={metric} is nothing that the reward returns, as its file does not name it: use reward "
            "(the sum), acc, or a key of the dict that compute_score returns",
            f"{_GROUP}.metric",
        )


def _mentioned(job: Job, metric: str) -> bool:
    """Whether the reward's file names *metric*; True where that file, or a manager of the user's, cannot be read."""
    key = "reward.custom_reward_function"
    if job.get("reward.reward_manager.source", "register") != "register":
        return True
    # The launcher's guard is what verl loads; the reward itself is an argument, "" for one of the library's.
    guarded = job.get(f"{key}.reward_kwargs.reward_path")
    path = job.get(f"{key}.path") if guarded is None else guarded
    if path is None:
        return False
    files = [Path(str(path)).expanduser()] if path else sorted(_LIBRARY.glob("*.py"))
    word = re.compile(rf"\b{re.escape(metric)}\b")
    return any(
        not file.is_file() or word.search(file.read_text(encoding="utf-8", errors="replace"))
        for file in files
    )
