"""Runs DPOTrainer, one run after the other, in each process of a torchrun; see dpo_world.py.

PLAN.json: {"folder": path, "runs": [{"name", "overrides": [...], "stop_after": steps or absent}]}. The metrics of a run
go to FOLDER/NAME.jsonl. "stop_after" ends a run between two steps, as a kill would; runs of one "name" go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]


class StoppedError(Exception):
    """The run was stopped."""


def one(run: dict, folder: Path) -> None:
    from hydra import compose, initialize_config_dir

    from dpo.dpo_trainer import DPOTrainer

    os.environ["VERL_FILE_LOGGER_PATH"] = str(folder / f"{run['name']}.jsonl")
    with initialize_config_dir(str(ROOT / "dpo"), version_base=None):
        config = compose("config", run["overrides"])
    trainer = DPOTrainer(config)
    step, after = trainer._train_step, run.get("stop_after")

    def stopping(indices: list[int], number: int) -> object:
        if after is not None and number > after:
            raise StoppedError
        return step(indices, number)

    with patch.object(trainer, "_train_step", stopping), contextlib.suppress(StoppedError):
        trainer.fit()


def main() -> None:
    from verl.utils.distributed import destroy_global_process_group, initialize_global_process_group

    initialize_global_process_group()
    plan = json.loads(Path(sys.argv[1]).read_text())
    for run in plan["runs"]:
        one(run, Path(plan["folder"]))
    destroy_global_process_group()


if __name__ == "__main__":
    main()
