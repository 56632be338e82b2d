"""What a name resolves to, and the one line when it resolves to nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from common.checkpoints import CheckpointError, launch_model, resolve


def test_last_is_the_run_that_saved_last_and_its_newest_complete_step(
    output: Path, add_run: Callable[..., Path], base: Path
) -> None:
    add_run("grpo/old", {5: base}, age=100)
    add_run("sft/middle", {3: base}, sub="", age=50)
    root = add_run("grpo/new", {5: base, 10: base})
    (root / "global_step_15/actor").mkdir(parents=True)  # being written, or pruned
    found = resolve("last", output=output)
    assert (found.kind, found.run, found.step) == ("hf", "grpo/new", 10)
    assert found.path == str(root / "global_step_10/actor/huggingface")
    assert resolve("last:sft", output=output).title == "sft/middle step 3"
    assert resolve("last:grpo", output=output).run == "grpo/new"
    assert resolve("old", output=output).title == "grpo/old step 5"
    assert resolve("sft/middle", output=output).step == 3
    assert resolve("new", output=output, step=5).step == 5


@pytest.mark.parametrize(
    "inside", ["", "global_step_10", "global_step_10/actor", "global_step_10/actor/huggingface"]
)
def test_every_folder_of_a_checkpoint_means_that_checkpoint(
    output: Path, add_run: Callable[..., Path], base: Path, inside: str
) -> None:
    root = add_run("grpo/run", {5: base, 10: base})
    assert resolve(str(root / inside)).title == "grpo/run step 10"


def test_log_folder_means_the_run_and_a_moved_output_still_works(
    output: Path, add_run: Callable[..., Path], base: Path, tmp_path: Path
) -> None:
    add_run("grpo/run", {5: base})
    assert resolve(str(output / "logs/grpo/run")).title == "grpo/run step 5"
    shutil.move(output, tmp_path / "moved")
    assert resolve(str(tmp_path / "moved/logs/grpo/run")).step == 5


def test_best_is_the_kept_step_with_the_best_validation(
    output: Path, add_run: Callable[..., Path], base: Path
) -> None:
    add_run("grpo/run", {5: base, 10: base, 15: base}, scores={0: 0.1, 5: 0.7, 10: 0.7, 12: 0.9, 15: 0.6})
    add_run("sft/run", {5: base, 10: base}, scores={5: 1.2, 10: 1.9}, metric="val/loss", sub="", age=9)
    assert resolve("best:grpo", output=output).step == 10  # 12 was not kept; of equal ones the later
    assert resolve("best:sft", output=output).step == 5  # a loss: lower is better
    assert resolve("best", output=output).run == "grpo/run"


@pytest.mark.parametrize(
    ("name", "say"),
    [
        ("last:dpo", "no dpo run under .* has saved a checkpoint .there are: grpo/run"),
        ("best:grpo", "no kept checkpoint of grpo/run was validated"),
        ("ran", "neither a folder, a run under .* nor a hub id owner/name; did you mean run"),
        ("grpo/empty", "run grpo/empty has no complete checkpoint yet"),
        ("", "no model named"),
    ],
)
def test_unknown_names_say_what_there_is(
    output: Path, add_run: Callable[..., Path], base: Path, name: str, say: str
) -> None:
    add_run("grpo/run", {5: base})
    add_run("grpo/empty", {})
    with pytest.raises(CheckpointError, match=say):
        resolve(name, output=output)


def test_wrong_folders_say_what_was_expected(
    output: Path, add_run: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"holds no model \(found: .*notes.txt.*expected config.json"):
        resolve(str(tmp_path))
    with pytest.raises(CheckpointError, match="is a file"):
        resolve(str(tmp_path / "notes.txt"))
    critic = tmp_path / "critic"
    critic.mkdir()
    (critic / "model_world_size_1_rank_0.pt").touch()
    with pytest.raises(CheckpointError, match="is a critic"):
        resolve(str(critic))
    root = add_run("grpo/pruned", {5: None})
    with pytest.raises(CheckpointError, match="holds no checkpoint with a model"):
        resolve(str(root))


def test_shards_that_are_missing_or_mixed_are_refused(tmp_path: Path) -> None:
    actor = tmp_path / "global_step_1" / "actor"
    actor.mkdir(parents=True)
    (actor / "model_world_size_3_rank_1.pt").touch()
    with pytest.raises(CheckpointError, match=r"1 of 3 shards \(rank 0, 2 missing\)"):
        resolve(str(actor))
    (actor / "model_world_size_1_rank_0.pt").touch()
    with pytest.raises(CheckpointError, match="mixes shards of 1 and 3 processes"):
        resolve(str(actor))


def test_launchers_take_plain_models_as_they_are_and_runs_as_folders(
    output: Path, add_run: Callable[..., Path], base: Path
) -> None:
    add_run("sft/first", {4: base}, sub="")
    exported = str(output / "checkpoints/sft/first/global_step_4/huggingface")
    for plain in (str(base), "smollm2", "Qwen/Qwen2.5-0.5B-Instruct", "/no/such/folder"):
        assert launch_model(plain, output) is None
    for name in ("last:sft", "first", "sft/first", str(output / "checkpoints/sft/first/global_step_4")):
        assert launch_model(name, output) == exported
    with pytest.raises(CheckpointError, match="last:grpo: no grpo run"):
        launch_model("last:grpo", output)
