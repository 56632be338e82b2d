"""The verl config of a method with some knobs, for any machine: what ``train.sh --compose`` hands to Hydra."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from common.launcher.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("sft", "dpo", "grpo", "gspo", "ppo")


def overrides(method: str, words: list[str]) -> list[str]:
    """verl's keys as ``<method>/train.sh`` would pass them.

    Args:
        words: flags and key=value as train.sh takes them.

    Raises:
        UserError: what train.sh says about them.
    """
    done = subprocess.run(
        ["bash", str(ROOT / method / "train.sh"), "--compose", *words],
        env={**os.environ, "VERL_TRAINING_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
        raise UserError(
            "\n".join(line.removeprefix("error: ") for line in said) or f"{method}/train.sh failed"
        )
    command = shlex.split(done.stdout)
    return command[command.index("--config-name") + 2 :]


def compose(method: str, words: list[str]) -> dict[str, Any]:
    """The resolved config of the method as nested dicts.

    Raises:
        UserError: knobs, or keys that Hydra does not take.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(config_dir=str(ROOT / method), version_base=None):
            config = hydra_compose("config", overrides=overrides(method, words))
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"verl's config: {str(error).splitlines()[0]}") from None
