"""A run that swallows reward errors as verl 0.9.1 does, with verl's own reward manager in Ray actors.

Driver -> TaskRunner actor -> reward worker actor, as in verl/trainer/main_ppo.py and agent_loop_tq.py:133.
It never ends by itself: only the reward's own stop can end it. Arguments: verl_entry.py, reward file,
function, parts folder.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import ray
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager


class Tokenizer:
    """Only what the naive manager calls."""

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return " ".join(str(int(i)) for i in ids)


class RewardWorker:
    """verl's RewardLoopWorker without its model tokenizer."""

    def __init__(self, config: Any) -> None:
        self.manager = load_reward_manager(config, Tokenizer())

    async def compute_score(self, data: DataProto) -> dict[str, Any]:
        return await self.manager.run_single(data)


class TaskRunner:
    """Starts two reward workers and throws every exception away."""

    def run(self, config: Any) -> None:
        workers = [ray.remote(RewardWorker).options(num_cpus=0).remote(config) for _ in range(2)]
        while True:
            for worker in workers:
                try:
                    print("scored", ray.get(worker.compute_score.remote(sample())), flush=True)
                except Exception as error:
                    print("swallowed", type(error).__name__, flush=True)
            time.sleep(0.2)


def sample() -> DataProto:
    """One answer of three tokens."""
    return DataProto.from_dict(
        tensors={
            "responses": torch.tensor([[1, 2, 3]]),
            "attention_mask": torch.ones(1, 5, dtype=torch.int64),
        },
        non_tensors={
            "data_source": np.array(["toy"], dtype=object),
            "reward_model": np.array([{"ground_truth": "3"}], dtype=object),
            "extra_info": np.array([{"index": 7, "max_global_steps": 4}], dtype=object),
        },
    )


def reward_config(entry: str, path: str, name: str, parts: str, **more: Any) -> Any:
    """The part of verl's config that concerns rewards."""
    kwargs = {"reward_path": path, "reward_name": name, "parts_dir": parts, **more}
    return OmegaConf.create(
        {
            "reward": {
                "custom_reward_function": {"path": entry, "name": "compute_score", "reward_kwargs": kwargs},
                "reward_manager": {"source": "register", "name": "naive"},
            }
        }
    )


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, address="local", log_to_driver=True)
    runner = ray.remote(TaskRunner).options(num_cpus=0).remote()
    ray.get(runner.run.remote(reward_config(*sys.argv[1:5])))
