"""REWARD_SOURCE: which function scores an answer, with which settings, and which keys verl needs for it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from common.cpu.model import resolve_model_path
from common.launcher import checks
from common.launcher.errors import UserError

HERE = Path(__file__).resolve().parent
SOURCES = ("function", "model", "api")
# What hands the question to the reward, and why one reward worker is enough: every call is asynchronous.
PROMPT_KEYS = (
    "reward.reward_manager.source=importlib",
    "reward.reward_manager.name=JudgeRewardManager",
    "reward.reward_manager.module.path=pkg://common.judge.verl_manager",
    "reward.num_workers=1",
)


def derive(knobs: dict[str, str], run_dir: Path) -> dict[str, str]:
    """REWARD_FUNC_PATH, REWARD_FUNC_NAME, REWARD_KWARGS and REWARD_KEYS (verl's keys, one per line).

    Raises:
        UserError: a source that is not complete.
    """
    weights = parts_of(knobs)
    if "api" in weights and knobs["REWARD_ERRORS"] == "zero":
        raise UserError(
            f"REWARD_ERRORS=zero with REWARD_SOURCE={knobs['REWARD_SOURCE']}: an answer that the judge failed to grade "
            "would count as worthless; use REWARD_ERRORS=raise, and on_failure: drop or constant in API_REWARD_CONFIG"
        )
    keys = list(PROMPT_KEYS) if weights.keys() - {"function"} else []
    parts = {}
    for source in weights:
        path, name, kwargs, more = _DERIVE[source](knobs)
        if source == "api":
            kwargs["run_dir"] = str(run_dir)
        parts[source] = (path, name, kwargs)
        keys += more
    if knobs["REWARD_SOURCE"] != "mix":
        path, name, kwargs = parts[knobs["REWARD_SOURCE"]]
        text = json.dumps(kwargs) if kwargs else ""
    else:
        path, name = str(HERE / "mix_reward.py"), "compute_score"
        text = json.dumps({"parts": [_part(s, *parts[s], weights[s]) for s in weights]})
    return {
        "REWARD_FUNC_PATH": path,
        "REWARD_FUNC_NAME": name,
        "REWARD_KWARGS": text,
        "REWARD_KEYS": "\n".join(keys),
    }


def parts_of(knobs: dict[str, str]) -> dict[str, float]:
    """Weight of every source that takes part; one of weight 1 unless REWARD_SOURCE=mix.

    Raises:
        UserError: REWARD_WEIGHTS cannot be read.
    """
    source, text = knobs["REWARD_SOURCE"], knobs["REWARD_WEIGHTS"]
    if source != "mix":
        return {source: 1.0}
    found: dict[str, float] = {}
    for item in filter(None, re.split(r"[,\s]+", text)):
        name, _, weight = item.partition("=")
        if name not in SOURCES or name in found or not re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", weight):
            raise UserError(
                f"REWARD_WEIGHTS='{text}': '{item}' is not one of {', '.join(SOURCES)}, each once, with its weight; "
                "write e.g. function=1.0,model=0.5"
            )
        found[name] = float(weight)
    if len(found) < 2 or not any(found.values()):
        raise UserError(
            f"REWARD_WEIGHTS='{text}': REWARD_SOURCE=mix needs two sources or more and a weight above 0"
        )
    return found


def preflight(knobs: dict[str, str], data: str) -> list[str]:
    """What a trial shows: a function on the run's own rows, a judge by one call; one line per problem."""
    problems: list[str] = []
    weights = parts_of(knobs)
    if "function" in weights:
        problems += checks.score_own_rows(knobs, data)
    if "api" in weights:
        from common.judge.check import check_config
        from common.judge.failures import JudgeError

        try:
            print(f"note: {check_config(Path(knobs['API_REWARD_CONFIG']))}", file=sys.stderr)
        except JudgeError as error:
            problems.append(f"API_REWARD_CONFIG: {error}")
    return problems


def _part(source: str, path: str, name: str, kwargs: dict[str, Any], weight: float) -> dict[str, Any]:
    reward = name if name.startswith("common:") else f"{path}:{name}"
    return {"reward": reward, "name": source, "weight": weight, "kwargs": kwargs}


def _function(knobs: dict[str, str]) -> tuple[str, str, dict[str, Any], list[str]]:
    name, kwargs = knobs["REWARD_FUNC_NAME"], knobs["REWARD_KWARGS"]
    path = checks.check_reward(knobs["REWARD_FUNC_PATH"], name, kwargs)
    return path, name, json.loads(kwargs) if kwargs else {}, []


def _api(knobs: dict[str, str]) -> tuple[str, str, dict[str, Any], list[str]]:
    config = _config_file("API_REWARD_CONFIG", knobs)
    return str(HERE / "api_reward.py"), "compute_score", {"config": str(config)}, []


def _model(knobs: dict[str, str]) -> tuple[str, str, dict[str, Any], list[str]]:
    from ppo import reward_model

    config = _config_file("REWARD_MODEL_CONFIG", knobs)
    if not knobs["REWARD_MODEL_PATH"]:
        raise UserError("REWARD_MODEL_PATH is empty: name the reward model (HF folder or hub id)")
    try:
        path = checks.check_model(resolve_model_path(knobs["REWARD_MODEL_PATH"]))
    except UserError as error:
        raise UserError(str(error).replace("MODEL_PATH=", "REWARD_MODEL_PATH=")) from None
    settings = reward_model.load_settings(config)
    plan = reward_model.plan(settings, path, config, knobs)
    kwargs = {"config": str(config), "model": path, "served": plan.served}
    return str(HERE / "model_reward.py"), "compute_score", kwargs, plan.keys


def _config_file(knob: str, knobs: dict[str, str]) -> Path:
    path = Path(knobs[knob]).expanduser()
    if not path.is_file():
        raise UserError(
            f"{knob}={knobs[knob]} is no file: copy ppo/{Path(knobs[knob]).name} and name the copy"
        )
    return path.resolve()


_DERIVE = {"function": _function, "model": _model, "api": _api}
