"""Scores while the model goes on: the reward as training calls it, in a thread of its own, errors kept."""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.data_utils.records import Message
from common.evaluation.items import Item
from common.evaluation.record import json_line, parse_line
from common.launcher.errors import UserError
from common.reward_functions import BoundReward, RewardError, as_parts, bind, load_reward
from common.reward_functions.answers import final_answer, last_number
from common.reward_functions.numbers import parse_number

ANSWER_KEYS = ("pred", "prediction", "extracted", "extracted_answer", "answer")
SCORE_FIELDS = ("score", "right", "answer", "parts", "reward_error")
JUDGES_AT_ONCE = 64


def choose_reward(
    name: str, kwargs: Mapping[str, Any], record: Mapping[str, Any], items: list[Item]
) -> tuple[BoundReward | None, str]:
    """(reward, who chose it); None when nothing can be scored, the text then says why.

    Args:
        name: `FILE.py[:function]`, `common:NAME`, `judge:CONFIG.yaml`, `none`, or "" = the run's own, else by
            the ground truths.
        kwargs: its keyword arguments.
        record: the run's `run.json`; empty without.
        items: the rows.

    Raises:
        UserError: no such reward, or it cannot be called.
    """
    try:
        if name == "none":
            return None, "--reward none"
        if name:
            return _load(name, kwargs), "--reward"
        truths = [item.ground_truth for item in items if item.ground_truth is not None]
        if not truths:
            return None, "the data has no ground truth (--reward scores without one)"
        knobs = record.get("knobs") or {}
        if knobs.get("REWARD_FUNC_NAME"):
            own = json.loads(knobs.get("REWARD_KWARGS") or "{}")
            return load_reward(
                knobs.get("REWARD_FUNC_PATH"), knobs["REWARD_FUNC_NAME"], {**own, **kwargs}
            ), "the run"
        return _by_truths(truths, items)
    except RewardError as error:
        raise UserError(f"--reward: {error}") from None


def _load(name: str, kwargs: Mapping[str, Any]) -> BoundReward:
    if name.startswith("common:"):
        return load_reward(None, name, kwargs)
    if name.startswith("judge:"):
        from common.judge import load_settings
        from common.judge.failures import JudgeError
        from common.judge.reward import judged

        config = str(Path(name.removeprefix("judge:")).expanduser().resolve())
        # A failed judgement is this sample's error here, never another sample's score.
        settings = {**kwargs, "on_failure": "raise"}
        try:
            load_settings(config, settings)
        except JudgeError as error:
            raise UserError(f"--reward {name}: {error}") from None
        return bind(name, judged, {"config": config, "settings": settings})
    path, colon, function = name.rpartition(":")
    if not colon or name.endswith(".py"):
        path, function = name, "compute_score"
    return load_reward(path, function, kwargs)


def _by_truths(truths: list[Any], items: list[Item]) -> tuple[BoundReward | None, str]:
    if all(item.data_source == "openai/gsm8k" for item in items):
        return load_reward(None, "common:gsm8k"), "the data (openai/gsm8k)"
    texts = [truth for truth in truths if isinstance(truth, str)]
    numbers = sum(parse_number(text) is not None or "\\" in text for text in texts)
    if texts and numbers >= 0.8 * len(truths):
        return load_reward(None, "common:math"), "the ground truths (numbers)"
    return None, "the ground truths are free text: choose --reward, e.g. common:rouge_l or judge:CONFIG.yaml"


def reward_key(reward: BoundReward | None) -> str:
    """Identity of a reward: its name, its knobs and, of a file, its content."""
    if reward is None:
        return ""
    code = getattr(reward.function, "__code__", None)
    source = Path(code.co_filename) if code else None
    text = (
        source.read_bytes() if source and source.is_file() and not reward.label.startswith("common:") else b""
    )
    knobs = json.dumps(dict(reward.kwargs), sort_keys=True, default=str)
    return f"{reward.label} {knobs} {hashlib.sha256(text).hexdigest()[:12]}"


def extracted(parts: Mapping[str, Any], output: str, truth: Any = None) -> str | None:
    """The answer that a majority votes on: the reward's own, else what stands last, in one spelling per value.

    Where the truth is a number, so is the answer: of `25 + 7 = 32` only the 32.
    """
    for key in ANSWER_KEYS:
        if key in parts:
            value = parts[key]
            return _spelling(str(value)) if value not in (None, "") else None
    found = final_answer(output)
    text = found.text if found else None
    if text and isinstance(truth, str) and parse_number(truth) is not None and parse_number(text) is None:
        text = last_number(text)
    return _spelling(text) if text else None


def _spelling(text: str) -> str:
    number = parse_number(text)
    return str(number) if number is not None else " ".join(text.lower().split()).rstrip(".")


def score_fields(parts: Mapping[str, Any], output: str, truth: Any, threshold: float) -> dict[str, Any]:
    """What a scored sample gets beside its text."""
    judged = parts["acc"] if isinstance(parts.get("acc"), int | float) else parts["score"]
    return {
        "score": parts["score"],
        "right": bool(judged >= threshold),
        "answer": extracted(parts, output, truth),
        "parts": {key: value for key, value in parts.items() if key != "score"},
        "reward_error": "",
    }


def failed_fields(error: str) -> dict[str, Any]:
    """The same for a sample that could not be scored: it counts as wrong, and as an error."""
    return {"score": 0.0, "right": False, "answer": None, "parts": {}, "reward_error": error}


class Scorer:
    """Scores samples beside the generation and keeps each score in a file until the record takes them.

    Args:
        reward: what to call; None = nothing is scored.
        path: the scores file. Scores of the same reward in it are kept, others dropped.
        threshold: of `right`.
        timeout: seconds for one score.
    """

    def __init__(self, reward: BoundReward | None, path: Path, threshold: float, timeout: float) -> None:
        self.reward, self.path, self.threshold, self.timeout = reward, path, threshold, timeout
        self.scores: dict[tuple[int, int], dict[str, Any]] = {}
        self.seconds = 0.0
        self.errors: Counter[str] = Counter()
        self._work: queue.SimpleQueue[tuple[Item, dict[str, Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if reward is None:
            return
        key = reward_key(reward)
        self._load(key)
        self._file = path.open("ab")
        if not self.scores:
            self._file.truncate(0)
            self._file.write(json_line({"reward": key, "threshold": threshold}))
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    def _load(self, key: str) -> None:
        if not self.path.exists():
            return
        lines = self.path.read_bytes().split(b"\n")
        head = parse_line(lines[0])
        if not head or head.get("reward") != key or head.get("threshold") != self.threshold:
            return
        keep = len(lines[0]) + 1
        for line in lines[1:-1]:
            row = parse_line(line)
            if row is None:
                break
            keep += len(line) + 1
            place = (row.pop("item"), row.pop("sample"))
            if not row["reward_error"]:  # what failed is tried again
                self.scores[place] = row
        with self.path.open("r+b") as file:
            file.truncate(keep)

    def add(self, item: Item, row: dict[str, Any]) -> None:
        """Queue a finished sample; one with an error of its own, or scored before, costs nothing."""
        key = (row["item"], row["sample"])
        if self.reward is None or key in self.scores:
            return
        if row["error"]:
            self.scores[key] = failed_fields("")
            return
        self._work.put((item, row))

    def finish(self) -> dict[tuple[int, int], dict[str, Any]]:
        """Wait for what is queued; the score fields by (item, sample)."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._file.close()
            self._thread = None
        return self.scores

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        assert self.reward is not None
        many = asyncio.Semaphore(JUDGES_AT_ONCE if self.reward.is_async else 1)
        running: set[asyncio.Task[None]] = set()
        takers = Caller(loop)
        while True:
            entry = await takers.call(self._work.get)
            if entry is None:
                break
            item, row = entry
            await many.acquire()
            task = asyncio.create_task(self._one(item, row, many))
            running.add(task)
            task.add_done_callback(running.discard)
        if running:
            await asyncio.gather(*running)

    async def _one(self, item: Item, row: dict[str, Any], many: asyncio.Semaphore) -> None:
        try:
            fields = await self._score(item, row)
        finally:
            many.release()
        self.scores[row["item"], row["sample"]] = fields
        self._file.write(json_line({"item": row["item"], "sample": row["sample"], **fields}))
        self._file.flush()

    async def _score(self, item: Item, row: dict[str, Any]) -> dict[str, Any]:
        assert self.reward is not None
        extra: dict[str, Any] = {**item.extra_info, "raw_prompt": _raw(item.messages)}
        passed = {
            "data_source": item.data_source,
            "solution_str": row["output"],
            "ground_truth": item.ground_truth if item.ground_truth is not None else "",
            "extra_info": extra,
        }
        begin = time.perf_counter()
        try:
            if self.reward.is_async:
                result = await asyncio.wait_for(self.reward(**passed), self.timeout)
            else:
                call = self._caller().call(lambda: self.reward(**passed))  # type: ignore[misc]
                result = await asyncio.wait_for(call, self.timeout)
            parts = as_parts(result, self.reward.label)
            return score_fields(parts, row["output"], item.ground_truth, self.threshold)
        except TimeoutError:
            self._sync = None  # its thread is stuck in the reward: the next sample gets a new one
            return self._failed(f"no score within {self.timeout:g} s (--reward_timeout)")
        except Exception as error:
            return self._failed(f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
        finally:
            self.seconds += time.perf_counter() - begin

    _sync: Caller | None = None

    def _caller(self) -> Caller:
        if self._sync is None:
            self._sync = Caller(asyncio.get_running_loop())
        return self._sync

    def _failed(self, error: str) -> dict[str, Any]:
        self.errors[error] += 1
        return failed_fields(error)


class Caller:
    """A daemon thread that an event loop hands calls to; abandoned, not joined, when a call never returns."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: queue.SimpleQueue[tuple[Any, asyncio.Future[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    async def call(self, function: Any) -> Any:
        """The function's result, from the thread."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._calls.put((function, future))
        return await future

    def _run(self) -> None:
        while True:
            function, future = self._calls.get()
            try:
                result, error = function(), None
            except Exception as problem:
                result, error = None, problem
            try:
                self._loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop is gone: nobody waits any more
                return


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _raw(messages: list[Message]) -> list[dict[str, Any]]:
    return [{"role": turn["role"], "content": turn["content"]} for turn in messages]
