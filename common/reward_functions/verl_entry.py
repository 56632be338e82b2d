"""The function that verl loads: it calls the user's reward and sees to errors and parts.

    reward.custom_reward_function.path=<absolute path of this file>
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.reward_path=/abs/my_reward.py   ("" for a registered reward)
    +reward.custom_reward_function.reward_kwargs.reward_name=my_reward           (or common:math)
    +reward.custom_reward_function.reward_kwargs.reward_kwargs={...}             (its knobs, or JSON text)
    +reward.custom_reward_function.reward_kwargs.error_policy=raise|zero
    +reward.custom_reward_function.reward_kwargs.parts_dir=/abs/run/rewards

`compute_score_sync` is the same for verl's `remote` manager, which refuses async functions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.reward_functions.training import TrainingReward

_READY: dict[tuple[str, str, str, str, int], tuple[TrainingReward, Any]] = {}


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    reward_path: str = "",
    reward_name: str = "",
    reward_kwargs: Mapping[str, Any] | str | None = None,
    error_policy: str = "raise",
    parts_dir: str = "",
    **runtime: Any,
) -> dict[str, Any]:
    """Score one answer with the run's reward.

    Returns:
        `score`, the reward's parts (the same keys for every sample) and `reward_error` (1.0 where it raised
        and the policy is "zero").

    Raises:
        RewardError: the reward is wrong, or raised under the policy "raise"; the run is then being stopped.
    """
    reward = _ready(reward_path, reward_name, reward_kwargs, error_policy, parts_dir)
    passed = {"data_source": data_source, "solution_str": solution_str, "ground_truth": ground_truth}
    return await reward.score_async({**passed, "extra_info": extra_info, **runtime})


def compute_score_sync(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    reward_path: str = "",
    reward_name: str = "",
    reward_kwargs: Mapping[str, Any] | str | None = None,
    error_policy: str = "raise",
    parts_dir: str = "",
    **runtime: Any,
) -> dict[str, Any]:
    """The same as `compute_score`, in the calling thread."""
    reward = _ready(reward_path, reward_name, reward_kwargs, error_policy, parts_dir)
    passed = {"data_source": data_source, "solution_str": solution_str, "ground_truth": ground_truth}
    return reward.score({**passed, "extra_info": extra_info, **runtime})


def _ready(path: str, name: str, kwargs: Any, policy: str, parts_dir: str) -> TrainingReward:
    key = (path, name, policy, parts_dir, id(kwargs))
    found = _READY.get(key)
    if found is None:
        root = str(Path(__file__).resolve().parents[2])
        if root not in sys.path:  # verl loads this file by its path, so the package may be unknown yet
            sys.path.insert(0, root)
        from common.reward_functions.loading import LOADING

        with LOADING:
            found = _READY.get(key) or _make_ready(key, kwargs)
    return found[0]


def _make_ready(key: tuple[str, str, str, str, int], kwargs: Any) -> tuple[TrainingReward, Any]:
    from common.reward_functions.errors import RewardError
    from common.reward_functions.loading import load_reward
    from common.reward_functions.training import TrainingReward, fail_run

    path, name, policy, parts_dir, _ = key
    folder = Path(parts_dir) if parts_dir else None
    try:
        reward = load_reward(path, name, _plain(kwargs))
    except RewardError as error:
        fail_run({"message": str(error)}, folder)
        raise
    # kwargs: keeps its id
    _READY[key] = (TrainingReward(reward, policy, folder), kwargs)
    return _READY[key]


def _plain(kwargs: Any) -> dict[str, Any]:
    """Knobs as a plain dict; verl passes OmegaConf nodes, a launcher JSON text."""
    if not kwargs:
        return {}
    if isinstance(kwargs, str):
        return dict(json.loads(kwargs))
    omegaconf = sys.modules.get("omegaconf")
    if omegaconf is not None and omegaconf.OmegaConf.is_config(kwargs):
        kwargs = omegaconf.OmegaConf.to_container(kwargs, resolve=True)
    return dict(kwargs)
