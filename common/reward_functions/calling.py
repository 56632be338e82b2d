"""Call any reward function with what verl passes, and read what it returns."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.reward_functions.errors import RewardError
from common.reward_functions.registry import nearest

# What verl 0.9.1 hands to compute_score (experimental/reward_loop/reward_manager/naive.py); the last two
# only while a reward model is served.
ALWAYS_PASSED = ("data_source", "solution_str", "ground_truth", "extra_info")
MODEL_PASSED = ("reward_router_address", "reward_model_tokenizer")


@dataclass(frozen=True)
class BoundReward:
    """A user's or a registered function with its knobs, callable with verl's keywords.

    Calling it gives what the function gives: a number, a dict with `score`, or an awaitable when `is_async`.
    """

    label: str
    function: Callable[..., Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    accepts: frozenset[str] | None = None  # None: the function takes any keyword
    is_async: bool = False

    def __call__(self, **passed: Any) -> Any:
        if self.accepts is not None:
            passed = {key: value for key, value in passed.items() if key in self.accepts}
        return self.function(**{**passed, **self.kwargs})


def bind(label: str, function: Any, kwargs: Mapping[str, Any] | None = None) -> BoundReward:
    """Check `function` against verl's call and tie `kwargs` to it.

    Raises:
        RewardError: not callable, a class, needs an argument nobody passes, or does not take a knob.
    """
    knobs = dict(kwargs or {})
    if inspect.isclass(function):
        raise RewardError(f"{label} is a class; point to a function or to an instance with __call__")
    if not callable(function):
        raise RewardError(f"{label} is a {type(function).__name__}, not a function")
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 (the bound method itself is wanted)
    )
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise RewardError(f"{label} has no readable signature: {error}") from None
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
        raise RewardError(f"{label} takes positional-only arguments; verl passes keywords")
    known = {p.name for p in named}
    available = {*ALWAYS_PASSED, *MODEL_PASSED, *knobs}
    missing = [p.name for p in named if p.default is p.empty and p.name not in available]
    if missing:
        raise RewardError(
            f"{label} needs {', '.join(missing)}, which nobody passes{nearest(missing[0], ALWAYS_PASSED)}; "
            f"verl passes {', '.join(ALWAYS_PASSED)}, add the rest as reward kwargs"
        )
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [knob for knob in knobs if knob not in known]
    if unknown and not open_ended:
        own = sorted(known - {*ALWAYS_PASSED, *MODEL_PASSED})
        raise RewardError(
            f"{label} does not take the knob '{unknown[0]}'{nearest(unknown[0], own)}; "
            f"its knobs: {', '.join(own) or 'none'}"
        )
    return BoundReward(label, function, knobs, None if open_ended else frozenset(known), is_async)


def as_parts(result: Any, label: str) -> dict[str, Any]:
    """A reward's result as a dict with a finite float `score` first.

    A bare number becomes `{"score": x, "acc": x}`, which is what verl's naive manager makes of it.

    Raises:
        RewardError: no `score`, or a score that is no finite number.
    """
    if isinstance(result, Mapping):
        if "score" not in result:
            raise RewardError(
                f"{label} returned a dict without 'score' (keys: {', '.join(map(str, result))})"
            )
        parts = {str(key): plain(value) for key, value in result.items()}
    else:
        number = plain(result)
        parts = {"score": number, "acc": number}
    score = parts["score"]
    if isinstance(score, bool):
        parts["score"] = score = float(score)
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise RewardError(f"{label} returned {_short(score)} as score; a finite number is needed")
    parts["score"] = float(score)
    return parts


def plain(value: Any) -> Any:
    """numpy and torch scalars as Python numbers; anything else unchanged."""
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "size", 1) == 1:
        return item()
    if callable(item) and callable(getattr(value, "numel", None)) and value.numel() == 1:
        return item()
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
