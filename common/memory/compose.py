"""The verl config of a method with some knobs, for any machine: what ``train.sh --compose`` hands to Hydra."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from common.launcher.errors import UserError
from common.memory.settings import plain
from common.preflight import composing
from common.preflight.command import parse

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("sft", "dpo", "grpo", "gspo", "ppo")


def compose(method: str, words: list[str]) -> dict[str, Any]:
    """The resolved config of the method as nested dicts.

    Args:
        words: flags and key=value as train.sh takes them.

    Raises:
        UserError: what train.sh or Hydra says about them.
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
    return plain(composing.compose(parse(shlex.split(done.stdout))))
