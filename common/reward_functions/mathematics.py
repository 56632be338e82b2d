"""Rewards for answers that are mathematics: `math` and `gsm8k`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.reward_functions import answers
from common.reward_functions.equality import compare
from common.reward_functions.errors import RewardError
from common.reward_functions.hard_math import HardMath, UndecidedError
from common.reward_functions.numbers import parse_number
from common.reward_functions.registry import Example, boxed_gold, register


def gold_answer(truth: Any) -> str:
    r"""The answer inside a ground truth: itself, or what a solution marks with `\boxed` or `####`."""
    text = str(truth).strip()
    boxed = answers.last_boxed(text)
    if boxed is not None:
        return boxed
    return text.rsplit("####", 1)[1].strip() if "####" in text else text


def _alternatives(truth: Any) -> list[str]:
    """A list of truths means any of them."""
    many = truth if isinstance(truth, Sequence) and not isinstance(truth, str) else [truth]
    golds = [gold_answer(item) for item in many]
    if not golds or not all(golds):
        raise RewardError(f"the ground truth is empty: {truth!r}")
    return golds


@register(
    "math",
    low=0.0,
    high=1.0,
    source="exact comparison here; undecided pairs by Math-Verify (huggingface/Math-Verify)",
    gold=boxed_gold,
    examples=(
        Example(r"So the answer is \boxed{\frac{1}{2}}.", "0.5", 1.0),
        Example(r"\boxed{(x+1)^2}", "x^2+2x+1", 1.0),
        Example("答案是三分之一", r"\frac{1}{3}", 1.0),
        Example(r"\boxed{[1,2)}", "(1,2)", 0.0),
    ),
)
def math(
    solution_str: str,
    ground_truth: Any,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    boxed_only: bool = False,
    time_limit: float = 5.0,
) -> dict[str, Any]:
    r"""Whether the final answer equals the gold one, as mathematics.

    Args:
        boxed_only: only an answer in `\boxed{}` counts.
        time_limit: seconds of work for one comparison that needs algebra; beyond it the answer is wrong.

    Returns:
        score and acc (0 or 1), answered (0 or 1), undecided (1 where algebra ran out of time or
        failed), pred, reason.
    """
    found = answers.final_answer(solution_str)
    if found is not None and boxed_only and found.how != "boxed":
        found = None
    golds = _alternatives(ground_truth)
    if found is None:
        return _verdict(False, "", "no answer found")
    undecided = ""
    for gold in golds:
        try:
            equal, how = compare(gold, found.text, lambda g, a: HardMath.shared().equal(g, a, time_limit))
        except UndecidedError as error:
            undecided = str(error)
            continue
        if equal:
            return _verdict(True, found.text, f"{found.how} answer equals {gold} ({how})")
    if undecided:
        return {**_verdict(False, found.text, f"not decided: {undecided}"), "undecided": 1.0}
    return _verdict(
        False, found.text, f"{found.how} answer {found.text[:60]} is not {' or '.join(golds)[:60]}"
    )


def _verdict(right: bool, pred: str, reason: str) -> dict[str, Any]:
    value = float(right)
    return {
        "score": value,
        "acc": value,
        "answered": float(bool(pred)),
        "undecided": 0.0,
        "pred": pred[:200],
        "reason": reason,
    }


@register(
    "gsm8k",
    low=0.0,
    high=1.0,
    source="GSM8K (Cobbe et al. 2021, arXiv:2110.14168): the number behind ####",
    gold=lambda truth, extra: f"#### {gold_answer(truth)}",
    examples=(
        Example("She has 3 + 4 = 7 eggs.\n#### 7", "7", 1.0),
        Example("#### 1,000", "She ... #### 1000", 1.0),
        Example("The answer is 7 dollars", "8", 0.0),
    ),
)
def gsm8k(
    solution_str: str,
    ground_truth: Any,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    strict: bool = False,
    format_score: float = 0.0,
) -> dict[str, Any]:
    """The number behind the last `####` equals the gold one.

    Args:
        strict: only `#### n` counts; otherwise a boxed, stated or last number does as well.
        format_score: score of a wrong answer that did use `####`, 0 to below 1.
    """
    if not 0.0 <= format_score < 1.0:
        raise RewardError(f"format_score must be in [0, 1), not {format_score}")
    gold = parse_number(gold_answer(ground_truth).lstrip("$"))
    if gold is None:
        raise RewardError(f"gsm8k needs a number as ground truth, not {ground_truth!r}")
    marked = answers.after_thinking(solution_str).rpartition("####")
    formatted = bool(marked[1])
    if formatted:
        text = answers.last_number(marked[2].split("\n")[0]) or ""
    elif strict:
        text = ""
    else:
        found = answers.final_answer(solution_str)
        text = (answers.last_number(found.text) or "") if found else ""
    value = parse_number(text.rstrip("%")) if text else None
    right = value is not None and value == gold
    return {
        "score": 1.0 if right else format_score * formatted,
        "acc": float(right),
        "format": float(formatted),
        "pred": text,
        "reason": f"{text or 'no number'} {'equals' if right else 'is not'} {gold}",
    }
