"""The reward of REWARD_SOURCE=api: a language model behind an API grades every answer.

    REWARD_FUNC_PATH=ppo/api_reward.py  REWARD_FUNC_NAME=compute_score  REWARD_ERRORS=raise
    REWARD_KWARGS='{"config": "/abs/ppo/api_reward_config.yaml", "run_dir": "/abs/run"}'
    reward.reward_manager.source=importlib
    reward.reward_manager.name=JudgeRewardManager
    reward.reward_manager.module.path=pkg://common.judge.verl_manager
    reward.num_workers=1

The judge itself, its providers and its limits are in common/judge; docs/judge.md tells how to use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.judge.reward import judged


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    config: str,
    settings: Mapping[str, Any] | None = None,
    run_dir: str = "",
) -> dict[str, Any]:
    """Grade one answer; the judge sees the question (from `extra_info`), the answer and the ground truth.

    Args:
        config: the judge's YAML file.
        settings: keys that replace those of the file, e.g. {"model": "gpt-4o"}.
        run_dir: the run's folder, for `judge-metrics.jsonl`; "" for none.

    Returns:
        `score`, `judge_failed`, `judge_cached` and `judge_reason`, see `common.judge.reward.judged`.

    Raises:
        JudgeError: the configuration is wrong, or no judgement could be had and the policy does not allow for it.
    """
    return await judged(
        solution_str, ground_truth, extra_info, config=config, settings=settings, run_dir=run_dir
    )
