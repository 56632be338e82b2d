"""Keeps the adaptive KL weight beside the checkpoint: verl 0.9.1 starts it again at kl_coef after a resume.

+trainer.checkpoint_callback_class=ppo.kl_state.SaveKLCoefficient
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

FILE = "kl_coef.txt"


class SaveKLCoefficient(CheckpointCallback):  # type: ignore[misc]
    """Writes ``global_step_N/kl_coef.txt``, which ``ppo/keys.sh`` reads on a resume."""

    def on_save(
        self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **kwargs: Any
    ) -> None:
        """Write the weight that the controller has reached."""
        (Path(checkpoint_dir) / FILE).write_text(f"{float(trainer.kl_ctrl_in_reward.value)!r}\n")
