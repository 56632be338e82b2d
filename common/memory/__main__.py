"""python -m common.memory METHOD [train.sh's flags, key=value] [--gpu-memory 80GB] [--fit] [--json]

python -m common.memory grpo --model Qwen/Qwen2.5-7B-Instruct --gpus 8 --gpu-memory 80GB --fit
python -m common.memory sft --model my-model --use_lora --max_length 8192 --json
python -m common.memory ppo --device cpu --model smollm2
python -m common.memory table          # fills the hardware table of the READMEs
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from common.launcher.errors import UserError, exit_with
from common.memory import UnknownArchitectureError, estimate
from common.memory.compose import METHODS, compose
from common.memory.fit import Fit, largest, shortage
from common.memory.models import config_of
from common.memory.report import as_json, show
from common.memory.settings import get
from common.memory.sizes import parse_size


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Our flags, and the words that go to train.sh."""
    parser = argparse.ArgumentParser(
        prog="python -m common.memory", usage="%(prog)s METHOD|table [train.sh's flags] [key=value] [options]",
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--method", choices=METHODS, help="in place of the first word")
    parser.add_argument(
        "--gpu-memory", "--gpu_memory", help="of one GPU (on the CPU: of the machine), e.g. 80GB"
    )
    parser.add_argument(
        "--fit", action="store_true", help="the largest micro-batch that fits; needs --gpu-memory"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    words = sys.argv[1:]
    # train.sh's flags and their values are not argparse's to read, so the first word is taken off by hand.
    first = words.pop(0) if words and not words[0].startswith("-") else ""
    own, words = parser.parse_known_args(words)
    own.method = first or own.method
    if own.method not in (*METHODS, "table"):
        raise UserError(
            f"'{own.method or ''}' is no method: begin with one of {', '.join(METHODS)}, or table"
        )
    if own.fit and not own.gpu_memory:
        raise UserError("--fit needs --gpu-memory, e.g. --gpu-memory 80GB")
    return own, words


def run() -> None:
    """The command line.

    Raises:
        UserError: one line about what is wrong.
    """
    own, words = arguments()
    if own.method == "table":
        from common.memory.table import write

        print("\n".join(f"filled {path}" for path in write()) or "the tables are up to date")
        return
    config = compose(own.method, words)
    rl = "actor_rollout_ref" in config
    trainer = config["trainer"]
    model = get(config, "actor_rollout_ref.model.path" if rl else "model.path")
    device = "cpu" if trainer["device"] == "cpu" else "cuda"
    memory = parse_size(own.gpu_memory) if own.gpu_memory else None
    critic, reward = get(config, "critic.model.path"), get(config, "reward.reward_model.model_path")
    uses_critic = get(config, "algorithm.adv_estimator") == "gae"
    more: dict[str, Any] = {
        "gpus": int(trainer["n_gpus_per_node"]),
        "nodes": int(trainer["nnodes"]),
        "device": device,
        "critic_config": config_of(critic) if uses_critic and critic != model else None,
        "reward_config": config_of(reward) if reward and get(config, "reward.reward_model.enable") else None,
    }
    try:
        shape = config_of(model)
        found = estimate(config, shape, gpu_memory=None if device == "cpu" else memory, **more)
        fitted: Fit | None = largest(config, shape, memory=memory, **more) if own.fit and memory else None
    except UnknownArchitectureError as error:
        raise UserError(f"{model}: {error}") from None
    stopped = shortage(found, memory, cpu=device == "cpu") if memory else ""
    if own.json:
        print(json.dumps(as_json(found, memory, stopped, fitted), indent=2))
    else:
        show(found, f"{own.method} {model}", more, memory, stopped, fitted)
    if stopped and not own.fit:
        sys.exit(1)


if __name__ == "__main__":
    exit_with(run)
