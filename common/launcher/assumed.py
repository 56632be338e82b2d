"""What planning would find, assumed: for ``--compose``, which asks for verl's command on some other machine.

Model, data and hardware are not looked at, nothing is converted and no run folder is made.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.cpu.model import MODEL_ALIAS, bundled_model_dir
from common.launcher import engine_checks, runs
from common.launcher.device import cores


def assumed(method: str, knobs: dict[str, str], checks_of: Callable[[str], Any]) -> dict[str, str]:
    """The values of ``common.launcher.plan`` that the shell needs, for a model and data that may not be here.

    Args:
        checks_of: ``plan.method_checks``; PPO's know which keys its reward model takes.

    Raises:
        UserError: a reward model that is not here.
    """
    output = Path(knobs["OUTPUT_DIR"]).expanduser().resolve()
    name, model = knobs.get("EXPERIMENT_NAME") or "compose", knobs["MODEL_PATH"]
    folder = runs.logs_dir(output, method) / name
    served = knobs.get("REWARD_SOURCE", "function") != "function"
    reward = checks_of(method).prepare(knobs, folder) if served else {"REWARD_KEYS": ""}
    return {
        "MODEL_DIR": str(bundled_model_dir()) if model == MODEL_ALIAS else model,
        "CRITIC_DIR": knobs.get("CRITIC_MODEL_PATH", ""),
        "REF_MODEL_DIR": knobs.get("REF_MODEL_PATH", ""),
        "LORA_ADAPTER_DIR": knobs.get("LORA_ADAPTER_PATH", ""),
        "TRAIN_FILE": "train.parquet",
        "VAL_FILE": "val.parquet",
        "TRAIN_ROWS": knobs["TRAIN_BATCH_SIZE"],
        "DATASET_CLASS_PATH": "",
        "DATASET_CLASS_NAME": "",
        "REWARD_FILE": knobs.get("REWARD_FUNC_PATH", ""),
        "RUN_NAME": name,
        "RUN_DIR": str(folder),
        "CHECKPOINT_DIR": str(runs.checkpoint_dir(output, method, name)),
        "METRICS_FILE": str(folder / "metrics-1.jsonl"),
        "CONSOLE_LOG": str(folder / "console-1.log"),
        "RUN_TAG": name,
        "STEPS_TOTAL": "1",
        "RESUME_STEP": "",
        "WANDB_MODE_CHOSEN": "",
        "CORES": str(cores()),
        "ATTENTION": "flash_attention_2" if knobs["DEVICE"] == "gpu" else engine_checks.attention("cpu"),
        **reward,
    }
