"""A reward inside a training run: parts to disk, errors never lost, the same keys for every sample."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import traceback
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.reward_functions import records
from common.reward_functions.calling import BoundReward, as_parts
from common.reward_functions.errors import RewardError
from common.reward_functions.stopping import stop_run

POLICIES = ("raise", "zero")
# What extra_info.split says of rows that are not trained on.
VALIDATION_SPLITS = ("val", "validation", "test")


class TrainingReward:
    """Wrap one reward for a run.

    Args:
        reward: the checked reward.
        error_policy: "raise" stops the run with the reward's error; "zero" scores the sample 0 and goes on.
        parts_dir: folder for the parts and errors of every sample, shared by all processes; None: no files.
    """

    def __init__(
        self, reward: BoundReward, error_policy: str = "raise", parts_dir: Path | None = None
    ) -> None:
        if error_policy not in POLICIES:
            raise RewardError(f"reward error policy '{error_policy}' is not one of {', '.join(POLICIES)}")
        self.reward = reward
        self.error_policy = error_policy
        self.parts_dir = parts_dir
        self.keys: dict[str, Any] | None = None  # part -> filler of the same type
        self._parts = records.Lines(parts_dir, records.PARTS) if parts_dir else None
        self._errors = records.Lines(parts_dir, records.ERRORS) if parts_dir else None
        self._told: set[str] = set()
        self._marker = str(parts_dir / records.MARKER) if parts_dir and error_policy == "raise" else ""

    def score(self, passed: Mapping[str, Any]) -> dict[str, Any]:
        """Score one sample in this thread; an async function gets its own event loop."""
        self._refuse_after_stop()
        begin = time.perf_counter()
        try:
            result = self.reward(**passed)
            if self.reward.is_async:
                result = asyncio.run(result)
            parts = as_parts(result, self.reward.label)
        except Exception as error:
            return self._failed(error, passed, begin)
        return self._done(parts, passed, begin)

    async def score_async(self, passed: Mapping[str, Any]) -> dict[str, Any]:
        """Score one sample; a plain function runs in the loop's thread pool, as verl itself does it."""
        if not self.reward.is_async:
            return await asyncio.get_running_loop().run_in_executor(None, self.score, passed)
        self._refuse_after_stop()
        begin = time.perf_counter()
        try:
            parts = as_parts(await self.reward(**passed), self.reward.label)
        except Exception as error:
            return self._failed(error, passed, begin)
        return self._done(parts, passed, begin)

    def _done(self, parts: dict[str, Any], passed: Mapping[str, Any], begin: float) -> dict[str, Any]:
        if self._parts is not None:
            parts["reward_error"] = 0.0
            self._parts.write(
                {**_where(passed), "seconds": round(time.perf_counter() - begin, 6), "parts": parts}
            )
            del parts["reward_error"]
        return self._same_keys(parts, 0.0)

    def _failed(self, error: Exception, passed: Mapping[str, Any], begin: float) -> dict[str, Any]:
        message = f"{self.reward.label} raised {type(error).__name__}: {' '.join(str(error).split())}"
        record = {
            "message": message,
            **_where(passed),
            "sample": {key: passed.get(key) for key in ("solution_str", "ground_truth", "extra_info")},
            "traceback": "".join(traceback.format_exception(error)),
        }
        if self._errors is not None:
            self._errors.write(record)
        scored = "" if self.error_policy == "raise" else " (scored 0)"
        print(f"reward error{scored}: {message}", file=sys.stderr, flush=True)
        if self.error_policy == "raise":
            fail_run(record, self.parts_dir)
            raise RewardError(message) from error
        parts = {"score": 0.0, "acc": 0.0, "reward_error": 1.0}
        if self._parts is not None:
            self._parts.write(
                {**_where(passed), "seconds": round(time.perf_counter() - begin, 6), "parts": parts}
            )
        return self._same_keys({"score": 0.0}, 1.0)

    def _same_keys(self, parts: dict[str, Any], failed: float) -> dict[str, Any]:
        """The parts under the run's fixed keys: verl averages a key over all samples."""
        keys = self.keys
        if keys is None:
            if failed:  # nothing is known yet of what the function returns
                return {"score": 0.0, "acc": 0.0, "reward_error": 1.0}
            keys = self.keys = self._agree_on_keys(parts)
        for key in parts.keys() - keys.keys() - self._told:
            self._told.add(key)
            print(
                f"reward warning: {self.reward.label} returned '{key}' for some samples only; it is kept in "
                f"{records.PARTS}-*.jsonl but not passed to verl. Return the same keys for every sample.",
                file=sys.stderr,
                flush=True,
            )
        same = {key: parts.get(key, filler) for key, filler in keys.items()}
        same["reward_error"] = failed
        return same

    def _agree_on_keys(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        mine = {key: "" if isinstance(value, str) else 0.0 for key, value in parts.items()}
        if self.parts_dir is None:
            return mine
        path = self.parts_dir / records.KEYS
        label = self.reward.label
        if records.claim(path, {"reward": label, "keys": mine}):
            return mine
        agreed = records.read_json(path)
        # An earlier attempt may have used another reward in this folder.
        return agreed["keys"] if agreed.get("reward") == label else mine

    def _refuse_after_stop(self) -> None:
        if self._marker and os.path.exists(self._marker):  # noqa: PTH110 (per call; Path costs more)
            marker = records.read_json(Path(self._marker))
            raise RewardError(f"the run is stopping: {marker['message']}")


def fail_run(record: Mapping[str, Any], parts_dir: Path | None) -> None:
    """Stop the run with `record["message"]`; only the first failing process of a run acts."""
    if parts_dir is None or records.claim(parts_dir / records.MARKER, record):
        stop_run(record["message"])


def _where(passed: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a sample, as far as verl tells it to a reward."""
    extra = passed.get("extra_info")
    extra = extra if isinstance(extra, Mapping) else {}
    return {
        "time": round(time.time(), 3),
        "step": step_of(extra),
        "split": extra.get("split"),
        "uid": extra.get("uid"),
        "index": extra.get("index"),
        "data_source": passed.get("data_source"),
        "answer_crc32": zlib.crc32(str(passed.get("solution_str", "")).encode("utf-8", "replace")),
    }


def step_of(extra: Mapping[str, Any]) -> int | None:
    """The training step of a sample, None where verl passes none.

    verl's `max_global_steps` is the step after which the answering weights were saved, so the step that
    trains on the answer is the next one; validation happens at that step itself.
    """
    weights = extra.get("max_global_steps")
    if weights is None:
        step = extra.get("global_steps")
        return None if step is None else int(step)
    return int(weights) if extra.get("split") in VALIDATION_SPLITS else int(weights) + 1
