"""Rewards that shape: length, DAPO's overlong penalty, cosine by length, process and step credit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from common.reward_functions.errors import RewardError
from common.reward_functions.matching import tokens
from common.reward_functions.registry import Example, register


def length_of(solution_str: str, extra_info: Mapping[str, Any] | None) -> int:
    """Length: `extra_info["response_length"]` where there is one, else words (characters for Chinese)."""
    counted = (extra_info or {}).get("response_length")
    return int(counted) if counted is not None else len(tokens(solution_str))


@register(
    "length",
    low=0.0,
    high=1.0,
    source="own rule: a plateau with linear edges",
    gold=lambda truth, extra: "word " * int(extra.get("at_least", 1)),
    examples=(
        Example("one two three", "", 1.0),
        Example("one two", "", 0.5, kwargs={"at_least": 4}),
        Example("a b c d e f", "", 0.5, kwargs={"at_most": 4}),
        Example("", "", 0.0),
    ),
)
def length(
    solution_str: str,
    ground_truth: Any = None,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    at_least: int = 1,
    at_most: int = 2048,
) -> dict[str, Any]:
    """1 between `at_least` and `at_most` words, falling to 0 at no word and at twice `at_most`."""
    if not 1 <= at_least <= at_most:
        raise RewardError(f"1 <= at_least <= at_most is needed, not {at_least} and {at_most}")
    count = length_of(solution_str, extra_info)
    score = min(1.0, count / at_least, max(0.0, 2 - count / at_most))
    return {"score": score, "length": float(count)}


@register(
    "overlong_penalty",
    low=-1.0,
    high=0.0,
    source="soft overlong punishment, DAPO (arXiv:2503.14476, equation 13)",
    gold=lambda truth, extra: str(truth),
    examples=(
        Example("one two", "", 0.0),
        Example("a b c d e f", "", -0.5, kwargs={"max_length": 8, "buffer": 4}),
        Example("a b c d e f g h i", "", -1.0, kwargs={"max_length": 8, "buffer": 4}),
    ),
)
def overlong_penalty(
    solution_str: str,
    ground_truth: Any = None,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    max_length: int = 2048,
    buffer: int = 512,
) -> dict[str, Any]:
    """0 up to `max_length - buffer` words, then falling linearly to -1 at `max_length` and beyond."""
    if not 0 < buffer <= max_length:
        raise RewardError(f"0 < buffer <= max_length is needed, not {buffer} and {max_length}")
    count = length_of(solution_str, extra_info)
    score = max(-1.0, min(0.0, (max_length - buffer - count) / buffer))
    return {"score": score, "overlong": float(score < 0), "length": float(count)}


@register(
    "cosine_length",
    low=-1.0,
    high=1.0,
    source="cosine length scaling, 'Demystifying Long CoT' (arXiv:2502.03373, section 4)",
    gold=lambda truth, extra: f"\\boxed{{{truth}}}",
    examples=(
        Example(r"\boxed{2}", "2", 1.0, extra={"response_length": 0}),
        Example(r"\boxed{2}", "2", 0.5, extra={"response_length": 2048}),
        Example(r"\boxed{3}", "2", -1.0, extra={"response_length": 0}),
        Example(r"\boxed{3}", "2", -0.5, extra={"response_length": 2048}),
    ),
)
def cosine_length(
    solution_str: str,
    ground_truth: Any,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    base: str = "math",
    max_length: int = 2048,
    right_short: float = 1.0,
    right_long: float = 0.5,
    wrong_short: float = -1.0,
    wrong_long: float = -0.5,
) -> dict[str, Any]:
    """Right answers earn more when short, wrong ones lose less when long, along a cosine of the length.

    Args:
        base: registered reward whose `acc` says right or wrong.
        max_length: words at which the long value is reached.
    """
    from common.reward_functions import registry

    if max_length < 1:
        raise RewardError(f"max_length must be at least 1, not {max_length}")
    judged = registry.get(base).function(
        solution_str=solution_str, ground_truth=ground_truth, data_source=data_source, extra_info=extra_info
    )
    if "acc" not in judged:
        raise RewardError(f"cosine_length needs a base that returns acc; '{base}' does not")
    right = judged["acc"] >= 1.0
    short, long = (right_short, right_long) if right else (wrong_short, wrong_long)
    count = length_of(solution_str, extra_info)
    progress = min(1.0, count / max_length)
    score = long + 0.5 * (short - long) * (1 + math.cos(progress * math.pi))
    return {"score": score, "acc": float(right), "length": float(count)}


@register(
    "step_progress",
    low=0.0,
    high=1.0,
    source="own rule, after process reward models (Lightman et al. 2023, arXiv:2305.20050)",
    gold=lambda truth, extra: " then ".join(map(str, truth)) if isinstance(truth, list | tuple) else None,
    examples=(
        Example("first 12, then 30, so 42", ["12", "30", "42"], 1.0),
        Example("first 12, so 40", ["12", "30", "42"], 1 / 3),
        Example("30 then 12", ["12", "30"], 0.5),
    ),
)
def step_progress(
    solution_str: str,
    ground_truth: Any,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Share of the intermediate results that appear in the answer in their order.

    The ground truth is the list of expected intermediate results, or `extra_info["steps"]` where a row
    has it.
    """
    from common.reward_functions.matching import longest_common

    wanted = (extra_info or {}).get("steps") or ground_truth
    if not isinstance(wanted, Sequence) or isinstance(wanted, str) or not wanted:
        raise RewardError(f"step_progress needs a list of intermediate results, not {wanted!r}")
    places: list[tuple[int, str]] = []
    said = f" {' '.join(tokens(solution_str))} "
    for step in dict.fromkeys(map(str, wanted)):
        needle = f" {' '.join(tokens(step))} "
        start = said.find(needle)
        while start >= 0 and len(places) < 10_000:
            places.append((start, step))
            start = said.find(needle, start + 1)
    seen = [step for _, step in sorted(places)]
    share = longest_common(list(map(str, wanted)), seen) / len(wanted)
    return {"score": share, "acc": float(share == 1.0)}


@register(
    "tool_step_rewards",
    low=0.0,
    high=1.0,
    source="verl's naive manager passes the tools' own step rewards as extra_info['tool_rewards']",
    gold=lambda truth, extra: str(truth) if extra.get("tool_rewards") or extra.get("turn_scores") else None,
    examples=(
        Example("done", "", 1.0, extra={"tool_rewards": [1.0, 1.0]}),
        Example("done", "", 0.25, extra={"tool_rewards": [0.5, 0.0]}),
        Example("done", "", 0.0, extra={"tool_rewards": []}),
    ),
)
def tool_step_rewards(
    solution_str: str,
    ground_truth: Any = None,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    discount: float = 1.0,
) -> dict[str, Any]:
    """Mean of the step rewards that tools gave during the rollout, each clipped to 0..1; 0 without any step.

    Args:
        discount: weight of each step relative to the next one; below 1 the last steps count more.
    """
    if not 0 < discount <= 1:
        raise RewardError(f"discount must be in (0, 1], not {discount}")
    extra = extra_info or {}
    given = [float(x) for x in (extra.get("tool_rewards") or extra.get("turn_scores") or []) if x is not None]
    weights = [discount ** (len(given) - 1 - index) for index in range(len(given))]
    clipped = [min(1.0, max(0.0, reward)) for reward in given]
    score = sum(w * r for w, r in zip(weights, clipped, strict=True)) / sum(weights) if given else 0.0
    return {"score": score, "tool_steps": float(len(given))}
