"""Real shards by verl's own manager, two processes; and folders laid out as the launchers do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_model import tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """`full/` and `lora/` as verl saves them from two processes, `<name>.logits.pt` beside each."""
    out = tmp_path_factory.mktemp("shards")
    script = Path(__file__).with_name("write_shards.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "common.cpu.plugin",
        "VERL_ENGINE_DEVICE": "cuda",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*command, str(script), str(base), str(out)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty OUTPUT_DIR and cache."""
    monkeypatch.setenv("VERL_TRAINING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs"


@pytest.fixture
def add_run(output: Path, base: Path) -> Callable[..., Path]:
    """Make a run with its log folder; returns its checkpoint folder.

    `steps` maps a step to a folder to copy (an HF model goes to huggingface/), or None for what verl leaves
    of a pruned step. `scores` maps steps to the validation metric.
    """

    def add(
        name: str,
        steps: dict[int, Path | None],
        *,
        scores: dict[int, float] | None = None,
        metric: str = "val-core/val/acc/mean@1",
        sub: str = "actor",
        command: tuple[str, ...] = (),
        age: float = 0,
    ) -> Path:
        root, logs = output / "checkpoints" / name, output / "logs" / name
        logs.mkdir(parents=True)
        for step, source in steps.items():
            place = root / f"global_step_{step}" / sub
            place.mkdir(parents=True)
            if source is not None:
                into = place / "huggingface" if (source / "config.json").is_file() else place
                shutil.copytree(source, into, dirs_exist_ok=True)
        if steps:
            mark = root / "latest_checkpointed_iteration.txt"
            mark.write_text(str(max(steps)))
            when = mark.stat().st_mtime - age
            os.utime(mark, (when, when))
        record = {
            "method": name.split("/")[0],
            "run": name.split("/")[1],
            "model_dir": str(base),
            "checkpoint_dir": str(root),
            "knobs": {"SAVE_FREQ": "5"},
            "command": list(command),
            "attempts": [{"n": 1, "metrics": "metrics-1.jsonl", "console": "console-1.log", "exit_code": 0}],
        }
        (logs / "run.json").write_text(json.dumps(record))
        lines = [
            json.dumps({"step": step, "data": {metric: value}}) for step, value in (scores or {}).items()
        ]
        (logs / "metrics-1.jsonl").write_text("".join(line + "\n" for line in lines))
        return root

    return add
