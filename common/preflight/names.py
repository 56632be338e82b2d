"""The names that verl's registries know, read from its source: importing it would take seconds."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from common.preflight.composing import verl_configs

LOGGERS = {  # verl.utils.tracking.Tracking.supported_backend -> the package that it imports
    "console": "",
    "file": "orjson",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "vemlp_wandb": "volcengine_ml_platform",
    "tensorboard": "tensorboard",
    "clearml": "clearml",
    "trackio": "trackio",
    "rl_insight": "rl_insight",
}
KL_ESTIMATORS = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3", "full")  # core_algos.kl_penalty_forward
V0_ONLY = ("remax", "gdpo", "optimal_token_baseline", "tir_optimal_token_baseline")
# Estimators that do not compare the answers of one prompt.
ONE_ANSWER = ("gae", "reinforce_plus_plus", "remax")


@cache
def estimators() -> frozenset[str]:
    """Values of ``verl.trainer.ppo.core_algos.AdvantageEstimator``."""
    text = _source("trainer/ppo/core_algos.py")
    block = text.partition("class AdvantageEstimator")[2].partition("\n\n\n")[0]
    return frozenset(re.findall(r'^    [A-Z_]+ = "(\w+)"', block, re.MULTILINE))


@cache
def losses() -> frozenset[str]:
    """Names registered with ``register_policy_loss``."""
    return frozenset(re.findall(r'@register_policy_loss\("(\w+)"\)', _source("trainer/ppo/core_algos.py")))


@cache
def reward_managers() -> frozenset[str]:
    """Reward managers that the trainer of 0.9.1 can reach."""
    return _registered("experimental/reward_loop/reward_manager", r'@register(?:_manager)?\("(\w+)"\)')


@cache
def trainer_modes() -> frozenset[str]:
    """Values of ``trainer.v1.trainer_mode``."""
    return _registered("trainer/ppo/v1", r'^@register_trainer\("(\w+)"\)')


@cache
def optimisers() -> frozenset[str]:
    """Classes of ``torch.optim``; empty where torch is laid out in another way."""
    spec = find_spec("torch")
    file = Path(spec.origin).parent / "optim" / "__init__.py" if spec and spec.origin else None
    text = file.read_text(encoding="utf-8") if file and file.is_file() else ""
    return frozenset(re.findall(r'^    "([A-Z]\w+)",$', text, re.MULTILINE)) - {"Optimizer"}


@cache
def agent_loops() -> frozenset[str]:
    """Agent loops that need no config file."""
    return _registered("experimental/agent_loop", r'^@register\("(\w+)"\)')


@cache
def tool_formats() -> frozenset[str]:
    """Values of ``rollout.multi_turn.format``."""
    return _registered("experimental/agent_loop", r'@ToolParser\.register\("([\w-]+)"\)')


@cache
def rollout_engines() -> frozenset[str]:
    """Values of ``rollout.name``."""
    return frozenset(re.findall(r'\("(\w+)", "async"\)', _source("workers/rollout/base.py")))


@cache
def scored_sources() -> frozenset[str]:
    """Strings that verl's own scorer compares ``data_source`` with."""
    return frozenset(re.findall(r'"([\w./-]+)"', _source("utils/reward_score/__init__.py")))


def suggest(wanted: str, known: Iterable[str]) -> str:
    """`; did you mean x?` or the list of what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f": use one of {', '.join(names)}"


def _source(path: str) -> str:
    return (verl_configs().parents[1] / path).read_text(encoding="utf-8")


def _registered(folder: str, pattern: str) -> frozenset[str]:
    found: set[str] = set()
    for path in sorted((verl_configs().parents[1] / folder).glob("*.py")):
        found.update(re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE))
    return frozenset(found)
