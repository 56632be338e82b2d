"""Reward functions by name: duplicate and unknown names raise and list the known ones."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from common.reward_functions.errors import RewardError

F = TypeVar("F", bound=Callable[..., Any])

# Imported on first use. Each module registers its functions by decorator and imports nothing heavy.
_BUILTIN_MODULES = (
    "common.reward_functions.composition",
    "common.reward_functions.matching",
    "common.reward_functions.mathematics",
    "common.reward_functions.programs",
    "common.reward_functions.shaping",
    "common.reward_functions.structured",
    "common.reward_functions.wording",
)


@dataclass(frozen=True)
class Example:
    """One documented call: `answer` against `truth` scores `score`; a function's first one is gold."""

    answer: str
    truth: Any
    score: float
    extra: Mapping[str, Any] = field(default_factory=dict)
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardSpec:
    """What the library knows about one reward.

    `low` and `high` bound the score at the default knobs. `gold(truth, extra)` writes a model answer that
    deserves `high`, or None where a row alone does not hold one.
    """

    name: str
    function: Callable[..., Any]
    low: float
    high: float
    source: str
    examples: tuple[Example, ...]
    gold: Callable[[Any, Mapping[str, Any]], str | None]

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (self.function.__doc__ or "").strip().splitlines()[0]


_SPECS: dict[str, RewardSpec] = {}


def boxed_gold(truth: Any, extra: Mapping[str, Any]) -> str:
    """A gold answer in the form that math prompts ask for."""
    return f"The answer is \\boxed{{{truth}}}."


def plain_gold(truth: Any, extra: Mapping[str, Any]) -> str:
    """The ground truth itself as the answer."""
    return str(truth)


def register(
    name: str,
    *,
    low: float,
    high: float,
    source: str,
    examples: Iterable[Example],
    gold: Callable[[Any, Mapping[str, Any]], str | None] = plain_gold,
) -> Callable[[F], F]:
    """Register a reward under `name`; the function stays as it was.

    Raises:
        RewardError: the name is taken, the docstring is missing, or there is no example.
    """

    def add(function: F) -> F:
        cases = tuple(examples)
        known = _SPECS.get(name)
        if known is not None and _place(known.function) != _place(function):
            raise RewardError(f"reward '{name}' is registered twice; known: {', '.join(sorted(_SPECS))}")
        if not (function.__doc__ or "").strip() or not cases:
            raise RewardError(f"reward '{name}' needs a docstring and at least one example")
        _SPECS[name] = RewardSpec(name, function, low, high, source, cases, gold)
        return function

    return add


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    """File and name of a function: one file may be loaded twice, as a module and by its path."""
    return function.__code__.co_filename, function.__qualname__


def _load_builtins() -> None:
    for module in _BUILTIN_MODULES:
        importlib.import_module(module)


def names() -> list[str]:
    """Every registered name, sorted."""
    _load_builtins()
    return sorted(_SPECS)


def get(name: str) -> RewardSpec:
    """The reward called `name`; 'common:' in front is allowed.

    Raises:
        RewardError: unknown name, with the nearest one and the whole list.
    """
    _load_builtins()
    short = name.removeprefix("common:")
    if short in _SPECS:
        return _SPECS[short]
    raise RewardError(f"unknown reward '{name}'{nearest(short, _SPECS)}; known: {', '.join(sorted(_SPECS))}")


def nearest(word: str, known: Iterable[str]) -> str:
    """', did you mean X?' for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""
