"""verl's naive reward manager, which also tells the reward what was asked and which group a sample belongs to.

    reward.reward_manager.source=importlib
    reward.reward_manager.name=JudgeRewardManager
    reward.reward_manager.module.path=pkg://common.judge.verl_manager
    reward.num_workers=1

verl 0.9.1 hands `raw_prompt`, `uid` and `session_id` to its reward managers
(trainer/ppo/v1/agent_loop_tq.py: `_agent_loop_postprocess`), but no manager of its own passes them to the reward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

from common.reward_functions.training import VALIDATION_SPLITS


class JudgeRewardManager(NaiveRewardManager):
    """Adds `raw_prompt`, `uid`, `session_id` and `group_size` to every sample's extra_info.

    Raises:
        ValueError: several reward workers: limits, cache and groups are kept within one process.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if config.reward.num_workers != 1:
            raise ValueError(
                f"JudgeRewardManager needs reward.num_workers=1, not {config.reward.num_workers}: a judge's rate "
                "limits and the means of groups hold within one process, which asks for many samples at once"
            )
        rollout = config.actor_rollout_ref.rollout
        self._train_size, self._val_size = int(rollout.n), int(rollout.val_kwargs.n)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score one sample; see `verl.experimental.reward_loop.reward_manager.naive`."""
        columns = data.non_tensor_batch
        last = {name: values[-1] for name, values in columns.items()}
        extra = dict(last["extra_info"]) if isinstance(last.get("extra_info"), Mapping) else {}
        if "raw_prompt" in last:
            extra["raw_prompt"] = [dict(turn) for turn in last["raw_prompt"]]
        if "uid" in last:
            extra["uid"] = str(last["uid"])
        if "session_id" in last:
            is_val = extra.get("split") in VALIDATION_SPLITS
            extra["session_id"] = int(last["session_id"])
            extra["group_size"] = self._val_size if is_val else self._train_size
        column = np.empty(len(data), dtype=object)
        column[:] = [{} for _ in range(len(data) - 1)] + [extra]
        columns["extra_info"] = column
        return await super().run_single(data)
