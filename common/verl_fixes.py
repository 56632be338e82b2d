"""What verl 0.9.1 gets wrong on every machine, mended: loaded by verl through ``VERL_USE_EXTERNAL_MODULES``.

| patch | upstream | without it |
|---|---|---|
| ``value_head`` | ``verl.utils.model.load_valuehead_model`` | no critic where flash-attn is missing |
| ``rows_for_rewards`` | ``PPOTrainer._compute_reward_colocate`` | own rewards fail beside a colocated reward model |
| ``start_next_epoch`` | ``CheckpointHandler._load_dataloader_state`` | a resume at an epoch's end skips an epoch |
| ``say_once`` | ``continuous_token_wiring.logger`` | a line on the console for every answer of every step |
"""

from __future__ import annotations

import functools
import logging
from types import SimpleNamespace
from typing import Any

import wrapt

from common import value_head
from common.cpu.versions import require

ROW_FIELDS = ("data_source", "reward_model", "extra_info")


def rows_for_rewards(trainer_base: Any) -> None:
    """Hand a colocated reward model's reward function the columns of its row.

    Upstream (verl 0.9.1, trainer/ppo/v1/trainer_base.py) passes ``raw_prompt`` alone, so that every reward
    manager dies with ``KeyError: 'data_source'`` when ``reward.custom_reward_function`` is set. A reward model on
    GPUs of its own (``enable_resource_pool``) is not concerned.

    Args:
        trainer_base: the imported module ``verl.trainer.ppo.v1.trainer_base``.
    """
    import numpy

    trainer = trainer_base.PPOTrainer
    upstream = trainer._compute_reward_colocate

    @functools.wraps(upstream)
    def _compute_reward_colocate(self: Any, batch: Any, metrics: dict | None = None) -> Any:
        rows = trainer_base.tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=list(ROW_FIELDS)
        )
        manager = self.reward_loop_manager

        def compute_rm_score(data: Any) -> Any:
            for name in ROW_FIELDS:
                column = numpy.empty(len(data), dtype=object)
                column[:] = list(rows[name])
                data.non_tensor_batch[name] = column
            return manager.compute_rm_score(data)

        self.reward_loop_manager = SimpleNamespace(compute_rm_score=compute_rm_score)
        try:
            return upstream(self, batch, metrics)
        finally:
            self.reward_loop_manager = manager

    trainer._compute_reward_colocate = _compute_reward_colocate


def start_next_epoch(checkpoint_handler: Any) -> None:
    """Resume at the end of an epoch with the whole next one.

    Upstream (verl 0.9.1, utils/checkpoint/checkpoint_handler.py) restores the dataloader that had reached its end,
    which then yields nothing: the next epoch's rows are never seen, and a run that is counted in epochs ends
    without its last step, validation and checkpoint. The sampler's order follows from the epoch's number, so a
    fresh dataloader is exact.

    Args:
        checkpoint_handler: the imported module ``verl.utils.checkpoint.checkpoint_handler``.
    """
    handler = checkpoint_handler.CheckpointHandler
    upstream = handler._load_dataloader_state

    def _load_dataloader_state(self: Any, checkpoint_path: str) -> None:
        step = checkpoint_handler.extract_step(checkpoint_path)
        if step % len(self.train_dataloader):
            upstream(self, checkpoint_path)

    handler._load_dataloader_state = _load_dataloader_state


class Once(logging.Filter):
    """Lets each message through once per process."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self.said
        self.said.add(message)
        return new


def say_once(module: Any) -> None:
    """Have a module's logger say each thing once.

    Upstream: ``verl.utils.tokenizer.continuous_token_wiring`` warns for every answer that the model's type has no
    builder of its own: more than half of the console log of GRPO's default run.

    Args:
        module: an imported module with a ``logger``.
    """
    module.logger.addFilter(Once())


def install() -> None:
    """Register every patch; a module that is never imported is never touched."""
    require("verl")
    value_head.install()
    wrapt.register_post_import_hook(rows_for_rewards, "verl.trainer.ppo.v1.trainer_base")
    wrapt.register_post_import_hook(start_next_epoch, "verl.utils.checkpoint.checkpoint_handler")
    wrapt.register_post_import_hook(say_once, "verl.utils.tokenizer.continuous_token_wiring")


install()
