"""Rewards: registered functions, composition, a guarded entry for verl, a look before a run.

    from common.reward_functions import load_reward
    reward = load_reward(None, "common:math")
    reward(solution_str="So it is \\boxed{1/2}.", ground_truth="0.5")["score"]   # 1.0

Importing this package is light: torch, sympy, math-verify and pyarrow are imported when first needed.
"""

from common.reward_functions.calling import BoundReward, as_parts, bind
from common.reward_functions.errors import RewardError
from common.reward_functions.loading import load_reward
from common.reward_functions.registry import Example, RewardSpec, get, names, register

__all__ = [
    "BoundReward",
    "Example",
    "RewardError",
    "RewardSpec",
    "as_parts",
    "bind",
    "get",
    "load_reward",
    "names",
    "register",
]
