"""Runs DPOTrainer with a small random model in this process, as torchrun would; see test_dpo_training.py.

stdin: {"folder": path, "runs": [{"name", "overrides": [...], "stop_after": steps or null}]}. The metrics of each run
go to FOLDER/NAME.jsonl. "stop_after" ends a run as a kill between two steps would.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]


class Stopped(Exception):
    pass


def main() -> None:
    from hydra import compose, initialize_config_dir

    import common.cpu.plugin  # noqa: F401
    from dpo.dpo_trainer import DPOTrainer

    given = json.loads(Path(sys.argv[1]).read_text())
    for run in given["runs"]:
        os.environ["VERL_FILE_LOGGER_PATH"] = str(Path(given["folder"]) / f"{run['name']}.jsonl")
        with initialize_config_dir(str(ROOT / "dpo"), version_base=None):
            config = compose("config", run["overrides"])
        trainer = DPOTrainer(config)
        step = trainer._train_step

        def stopping(indices: list[int], number: int, step=step, after=run.get("stop_after")) -> object:
            if after is not None and number > after:
                raise Stopped
            return step(indices, number)

        with patch.object(trainer, "_train_step", stopping):
            try:
                trainer.fit()
            except Stopped:
                pass


if __name__ == "__main__":
    from verl.utils.distributed import destroy_global_process_group, initialize_global_process_group

    initialize_global_process_group()
    main()
    destroy_global_process_group()
