"""Would the reward recognise a right answer? Each ground truth is given to it as the answer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from common.data_utils.errors import DataError
from common.data_utils.records import Row

Reward = Callable[..., Any]


def load(name: str) -> Reward:
    """A registered reward by name, or a function of a file as FILE[:function] (default compute_score).

    Raises:
        DataError: it cannot be loaded.
    """
    from common.reward_functions import load_reward
    from common.reward_functions.errors import RewardError

    path, _, function = name.partition(".py")
    try:
        if function == "" and not name.endswith(".py"):
            return load_reward(None, name)
        return load_reward(path + ".py", function.removeprefix(":") or "compute_score")
    except RewardError as problem:
        raise DataError(f"--reward {name}: {problem}") from None


def _score(reward: Reward, row: Row, answer: str) -> float:
    result = reward(
        data_source=row["data_source"],
        solution_str=answer,
        ground_truth=row["reward_model"]["ground_truth"],
        extra_info=row["extra_info"],
    )
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    value = result["score"] if isinstance(result, dict) else result
    return float(value)


def _spellings(truth: str) -> tuple[str, ...]:
    """A ground truth as a model would give it: bare, and in the forms that rewards commonly ask for."""
    return (
        truth,
        f"#### {truth}",
        f"\\boxed{{{truth}}}",
        f"<answer>{truth}</answer>",
        f"The answer is {truth}",
    )


def problem_with(reward: Reward, row: Row) -> str | None:
    """Why the reward cannot use this row's ground truth; None if a right answer beats an empty one."""
    truth = row["reward_model"]["ground_truth"]
    try:
        empty = _score(reward, row, "")
        best = max(_score(reward, row, answer) for answer in _spellings(str(truth)))
    except Exception as problem:  # whatever a reward raises in training would lose the sample there
        return (
            f"the reward raises {type(problem).__name__}: {(str(problem) or '(no message)').splitlines()[0]}"
        )
    if best <= empty:
        return f"the right answer scores {best:g}, no better than an empty one ({empty:g})"
    return None
