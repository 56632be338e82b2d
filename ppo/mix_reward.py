"""The reward of REWARD_SOURCE=mix: a weighted sum of function, reward model and API judge, every part logged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from common.reward_functions.composition import Composite, compose


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    parts: Sequence[Mapping[str, Any]],
    **runtime: Any,
) -> dict[str, Any]:
    """Score one answer by all parts side by side.

    Args:
        parts: as in ``common.reward_functions.composition.compose``; ppo/reward_source.py writes them.
        runtime: what verl passes while it serves a reward model.

    Returns:
        ``score``, the function's ``acc`` where it has one, and each part's own score under its name.
    """
    passed = {"data_source": data_source, "solution_str": solution_str, "ground_truth": ground_truth}
    composite = _composed(json.dumps(list(parts)))
    return await composite.score_async(**passed, extra_info=extra_info, **runtime)


@lru_cache(maxsize=4)
def _composed(parts: str) -> Composite:
    return compose({"parts": json.loads(parts)})
