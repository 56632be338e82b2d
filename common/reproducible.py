"""Rollouts that do not depend on when they happen: a resumed run samples what the uninterrupted one would have.

verl 0.9.1 seeds the rollout engine once, at its start, and orders a batch by which answer was finished first. Its own
``rollout.full_determinism`` gives every request one seed, so that the answers of a group are all the same.

    actor_rollout_ref.rollout.agent.agent_loop_config_path=<repository>/common/reproducible.yaml
    trainer.v1.sampler.custom_sampler.path=<this file>
    trainer.v1.sampler.custom_sampler.name=OrderedReplayBuffer
"""

from __future__ import annotations

import hashlib
from typing import Any

from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer


def answer_seed(seed: int, step: int, session: int, prompt: Any) -> int:
    """Seed of one answer, 32 bits: the run's seed, the training step, the answer's number and the messages."""
    text = repr((int(seed), int(step), int(session), [dict(turn) for turn in prompt]))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).digest(), "big")


class _Seeded:
    """Gives the sampling parameters of one answer a seed of their own."""

    rollout_config: Any

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        own = answer_seed(
            self.rollout_config.seed, kwargs["global_steps"], kwargs["session_id"], kwargs["raw_prompt"]
        )
        return await super().run({**sampling_params, "seed": own}, **kwargs)  # type: ignore[misc]


class SeededSingleTurn(_Seeded, SingleTurnAgentLoop):  # type: ignore[misc]
    """verl's ``single_turn_agent`` with a seed per answer."""


class SeededTool(_Seeded, ToolAgentLoop):  # type: ignore[misc]
    """verl's ``tool_agent`` with a seed per answer."""


class OrderedReplayBuffer(ReplayBuffer):  # type: ignore[misc]
    """Batches in the order of their prompts instead of the order in which answers were finished."""

    def _materialize_batch(
        self, partition_id: str, selected_prompt_uids: list[str], partition_snapshot: dict[str, dict]
    ) -> Any:
        # verl lists prompts in the order in which the data loader gave them.
        place = {uid: number for number, uid in enumerate(self.prompt_global_steps[partition_id])}

        def order(key: str) -> tuple[int, list[int]]:
            uid, *numbers = key.split("_")
            return place.get(uid, len(place)), [int(number) for number in numbers]

        ordered = {key: partition_snapshot[key] for key in sorted(partition_snapshot, key=order)}
        return super()._materialize_batch(partition_id, selected_prompt_uids, ordered)
