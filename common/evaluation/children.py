"""Evaluations of several models: one process each, so that no memory of one is left for the next."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from common.checkpoints import default_output, resolve
from common.evaluation import output
from common.evaluation.options import TRUE_FLAGS, make_parser
from common.launcher.errors import UserError

OWN = ("compare", "sweep", "config", "output_file", "model_path", "single", "batch", "step", "help")


def main_output(options: Namespace, kind: str) -> Path:
    """Where the overall result goes."""
    if options.output_file:
        return Path(options.output_file)
    folder = (options.output_dir or default_output()) / "evaluations"
    names = "-".join(Path(name).name for name in options.compare) or options.sweep
    return folder / f"{kind}-{_safe(names)[:80]}.xlsx"


def child_output(main: Path, name: str) -> Path:
    """`results.xlsx`, `last:grpo` -> `results.last-grpo.jsonl`."""
    return main.with_name(f"{main.stem}.{_safe(name)[-60:]}.jsonl")


def _safe(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^\w-]+", "-", name).strip("-")


def evaluate(options: Namespace, model: str, target: Path, step: int | None = None, **changes: Any) -> bool:
    """Run one model's evaluation; True when it ended without errors.

    Raises:
        UserError: it could not run at all.
        KeyboardInterrupt: it was stopped.
    """
    values = {**vars(options), **changes}
    words = [sys.executable, "-m", "common.test_model", "--batch", "--model_path", model]
    words += ["--output_file", str(target)]
    words += ["--step", str(step)] if step is not None else []
    for action in make_parser()._actions:
        name = action.dest
        value = values.get(name)
        if name in OWN or value == action.default or value in (None, ""):
            continue
        if name in TRUE_FLAGS:
            words.append(f"--{name}")
        elif not (isinstance(value, dict) and not value):
            words.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    print(f"\n== {model}{f' step {step}' if step is not None else ''}", file=sys.stderr, flush=True)
    child = subprocess.Popen(words)
    try:
        code = child.wait()
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)
        child.wait()
        raise
    if code == 130:
        raise KeyboardInterrupt
    if not output.record_path(target).is_file() or code not in (0, 1):
        raise UserError(f"evaluating {model} failed (see above); what is done stays in {target.parent}")
    return code == 0


def one_reward(options: Namespace, models: list[str]) -> dict[str, Any]:
    """The flags that give all models the same reward: the one of the last of them that comes from a run."""
    if options.reward:
        return {}
    for model in reversed(models):
        checkpoint = resolve(model, output=options.output_dir or default_output(), base=options.base_model)
        knobs = checkpoint.record().get("knobs") or {}
        name = knobs.get("REWARD_FUNC_NAME")
        if name:
            path = knobs.get("REWARD_FUNC_PATH")
            reward = name if name.startswith("common:") or not path else f"{path}:{name}"
            own = json.loads(knobs.get("REWARD_KWARGS") or "{}")
            return {"reward": reward, "reward_kwargs": {**own, **options.reward_kwargs}}
    return {}
