"""MODEL_PATH may name another run: `last:sft`, a run's name, a checkpoint; a resume means the same model again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from common.cpu.model import ensure_bundled_model

from .conftest import Launcher


def exported(launch: Launcher, method: str, name: str, step: int) -> Path:
    """A checkpoint whose exported model is the bundled one (weights by link)."""
    root = launch.output / "checkpoints" / method / name
    folder = root / f"global_step_{step}" / "huggingface"
    shutil.copytree(
        ensure_bundled_model(), folder, copy_function=lambda source, to: Path(to).symlink_to(source)
    )
    (root / "latest_checkpointed_iteration.txt").write_text(str(step))
    return folder


@pytest.mark.slow
def test_model_of_another_run_is_its_newest_checkpoint(launch: Launcher) -> None:
    folder = exported(launch, "sft", "taught", 20)
    flags = ("--device", "cpu", "--no-preflight", "--name", "next")
    for name in ("last:sft", "taught", "sft/taught", str(folder.parent)):
        done = launch(*flags, "--model", name, "--dry-run")
        assert done.code == 0, done.err
        assert f"note: MODEL_PATH={name} is {folder}" in done.err
        assert f'actor_rollout_ref.model.path="{folder}"' in done.out.replace("\\", "")
    assert launch(*flags, "--model", "last:sft").code == 0
    record = launch.run_json("next")
    assert (record["model"], record["model_dir"]) == (str(folder), str(folder))
    assert record["knobs"]["MODEL_PATH"] == str(folder)


@pytest.mark.parametrize("name", ["last:dpo", "best:sft", "last"])
def test_a_name_without_a_checkpoint_gets_one_line(launch: Launcher, name: str) -> None:
    done = launch("--device", "cpu", "--no-preflight", "--model", name)
    assert (done.code, done.call) == (2, None)
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"{name}: no " in errors[0] and "has saved a checkpoint" in errors[0]
