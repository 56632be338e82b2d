"""What happens after a checkpoint, on folders laid out as verl writes them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from omegaconf import OmegaConf

from common.callbacks import Actions, actions_of, after_save, rotate
from common.checkpoints.errors import CheckpointError
from common.launcher.errors import UserError
from common.launcher.summary import lower_is_better, validation_key
from common.watcher import children

from .conftest import Paper


def kept(paper: Paper) -> list[int]:
    return sorted(int(path.name.rpartition("_")[2]) for path in paper.checkpoints.glob("global_step_*"))


def scored(paper: Paper, scores: dict[int, float], key: str = "val-core/x/acc/mean@1") -> None:
    with (paper.folder / "metrics-1.jsonl").open("a") as log:
        for step, score in scores.items():
            log.write(json.dumps({"step": step, "data": {key: score}}) + "\n")


def test_rotation_keeps_the_newest_and_what_earlier_attempts_wrote_goes_too(paper: Paper) -> None:
    for step in (5, 10, 15, 20):
        paper.checkpoint(step)
    gone = rotate(paper.checkpoints, 2, keep_best=False)
    assert [path.name for path in gone] == ["global_step_5", "global_step_10"]
    assert kept(paper) == [15, 20]
    assert rotate(paper.checkpoints, 0, keep_best=False) == []


def test_the_best_one_stays(paper: Paper) -> None:
    for step in (5, 10, 15, 20):
        paper.checkpoint(step)
    scored(paper, {5: 0.9, 10: 0.2, 15: 0.3})
    rotate(paper.checkpoints, 1, keep_best=True)
    assert kept(paper) == [5, 20]


def test_of_losses_the_lowest_is_the_best(paper: Paper) -> None:
    for step in (5, 10, 15):
        paper.checkpoint(step)
    scored(paper, {5: 0.9, 10: 0.2, 15: 0.3}, "val/loss")
    rotate(paper.checkpoints, 1, keep_best=True)
    assert kept(paper) == [10, 15]


def test_while_nothing_is_validated_nothing_goes(paper: Paper) -> None:
    for step in (5, 10):
        paper.checkpoint(step)
    assert rotate(paper.checkpoints, 1, keep_best=True) == []


def test_the_step_to_resume_from_and_a_rounds_start_stay(paper: Paper) -> None:
    for step in (4, 8, 12, 10):  # the newest complete one is 10: 12 was cut short
        paper.checkpoint(step)
    rotate(paper.checkpoints, 1, keep_best=False, protected={4})
    assert kept(paper) == [4, 10, 12]


def test_after_each_checkpoint_of_a_run(paper: Paper, tmp_path: Path) -> None:
    """The watcher sees each new one, runs the command with its words, and thins out at the end as well."""
    write = "import sys, pathlib; pathlib.Path(sys.argv[1]).open('a').write(' '.join(sys.argv[2:]) + chr(10))"
    words = [
        sys.executable,
        "-c",
        f'"{write}"',
        f"{tmp_path}/out",
        "{step}",
        "{run}",
        "'$HOME; {checkpoint}'",
    ]
    paper.record(
        knobs={"KEEP_CHECKPOINTS": "1", "KEEP_BEST": "true", "SAVE_FREQ": "5", "ON_SAVE": " ".join(words)}
    )
    watch = paper.start()
    for steps in ((5,), (10, 15), (20,)):  # the second look finds two
        for step in steps:
            paper.checkpoint(step)
        watch.tick()
        scored(paper, {step: {5: 0.5, 10: 0.9, 15: 0.7, 20: 0.6}[step] for step in steps})
    watch.finish()
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines[0] == f"5 grpo/r $HOME; {paper.checkpoints}/global_step_5"
    assert [line.split()[0] for line in lines] == ["5", "10", "15", "20"]
    assert kept(paper) == [10, 20]
    assert any("KEEP_CHECKPOINTS=1, best kept" in line for line in paper.said)


def test_a_command_that_fails_is_said_and_stops_nothing(paper: Paper, tmp_path: Path) -> None:
    folder = paper.checkpoint(5)
    for command, text in (
        ((sys.executable, "-c", "print('no room'); raise SystemExit(3)"), "ended with exit code 3, see"),
        (("no-such-program",), "no-such-program cannot be run: No such file or directory"),
    ):
        said: list[str] = []
        after_save(Actions(command=command), folder, 5, said.append, log=tmp_path / "log")
        assert len(said) == 1
        assert text in said[0]
    assert "no room" in (tmp_path / "log").read_text()


def test_an_export_that_fails_is_said(paper: Paper, tmp_path: Path) -> None:
    said: list[str] = []
    after_save(Actions(export=True), paper.checkpoint(5), 5, said.append, log=tmp_path / "log")
    (line,) = said
    assert line.startswith(f"exporting {paper.checkpoints}/global_step_5: error: ")


@pytest.mark.parametrize(
    "value",
    [
        "unclosed 'quote",
        "cp {checkpoint} {where}",
        "x {}",
        "cp {checkpoint.name} x",
        "x {step[0]}",
    ],
)
def test_on_save_that_cannot_be_read(value: str) -> None:
    with pytest.raises(UserError, match=r"ON_SAVE=.* cannot be read"):
        actions_of({"ON_SAVE": value})


@pytest.mark.slow
def test_verls_own_hook(paper: Paper, capsys: pytest.CaptureFixture[str]) -> None:
    """verl builds the class by its name and calls it after a save (verl.trainer.ppo.checkpoint_callback)."""
    from verl.trainer.ppo.checkpoint_callback import build_checkpoint_callback

    own = {"keep": 1, "command": [sys.executable, "-c", "pass", "{step}"]}
    trainer = {"checkpoint_callback_class": "common.callbacks.AfterSave", "after_save": own}
    callback = build_checkpoint_callback(OmegaConf.create({"trainer": trainer}))
    for step in (5, 10):
        folder = paper.checkpoint(step)
        callback.on_save(trainer=None, global_step=step, checkpoint_dir=str(folder), async_save=False)
    assert kept(paper) == [10]
    callback.on_save(trainer=None, global_step=15, checkpoint_dir="nowhere", async_save=True)
    assert (paper.checkpoints / "on_save.log").read_text().count("$ ") == 2
    trainer["after_save"] = {"keeep": 1}
    with pytest.raises(ValueError, match="unknown key 'keeep'; known: command, export, keep, keep_best"):
        build_checkpoint_callback(OmegaConf.create({"trainer": trainer}))


def test_deleting_what_cannot_be_deleted(paper: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (5, 10):
        paper.checkpoint(step)
    monkeypatch.setattr(
        Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
    )
    with pytest.raises(CheckpointError, match="global_step_5 cannot be deleted: Read-only file system"):
        rotate(paper.checkpoints, 1, keep_best=False)


def test_of_several_metrics_the_mean_counts(paper: Paper) -> None:
    """best@N comes first in the alphabet, and `loss` is a part of other words."""
    for step in (5, 10, 15):
        paper.checkpoint(step)
    for key, scores in {
        "val-core/glossary_qa/acc/best@4/mean": {5: 0.2, 10: 0.5, 15: 0.6},
        "val-core/glossary_qa/acc/best@4/std": {5: 0.2, 10: 0.5, 15: 0.6},
        "val-core/glossary_qa/acc/maj@4/mean": {5: 0.2, 10: 0.5, 15: 0.6},
        "val-core/glossary_qa/acc/mean@4": {5: 0.1, 10: 0.4, 15: 0.3},
    }.items():
        scored(paper, scores, key)
    rotate(paper.checkpoints, 1, keep_best=True)
    assert kept(paper) == [10, 15]


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (["val/loss", "val/rewards/accuracies", "val/logps/chosen"], "val/rewards/accuracies"),
        (["val/loss", "train/loss"], "val/loss"),
        (["val-core/b/reward/mean@1", "val-core/a/reward/best@2/mean"], "val-core/b/reward/mean@1"),
        (["val-core/x/acc/maj@2/mean"], "val-core/x/acc/maj@2/mean"),
        (["val/other"], "val/other"),
        (["val-aux/x/score/mean@1"], None),
    ],
)
def test_the_metric_that_decides(keys: list[str], wanted: str | None) -> None:
    assert validation_key([(1, dict.fromkeys(keys, 0.5))]) == wanted
    assert wanted is None or lower_is_better(wanted) is (wanted == "val/loss")


def test_what_still_waits_for_its_command_is_not_deleted(paper: Paper) -> None:
    """A command that takes longer than the training from one checkpoint to the next."""
    go = paper.folder / "go"
    wait = f"until [ -e {go} ]; do sleep 0.02; done; test -d {{checkpoint}} || exit 9"
    paper.record(
        knobs={"KEEP_CHECKPOINTS": "1", "KEEP_BEST": "true", "SAVE_FREQ": "5", "ON_SAVE": f"sh -c '{wait}'"}
    )
    watch = paper.start()
    scored(paper, {5: 0.9, 10: 0.5, 15: 0.4, 20: 0.3})
    for step in (5, 10, 15, 20):
        paper.checkpoint(step)
        watch.tick()
    go.touch()
    watch.finish()
    assert not [line for line in paper.said if "exit code" in line]
    assert kept(paper) == [5, 20]


def test_a_rounds_start_stays_that_was_saved_while_an_action_ran(paper: Paper) -> None:
    go = paper.folder / "go"
    wait = f"until [ -e {go} ]; do sleep 0.02; done"
    paper.record(
        steps_per_round=10,
        knobs={"KEEP_CHECKPOINTS": "1", "KEEP_BEST": "true", "SAVE_FREQ": "2", "ON_SAVE": f"sh -c '{wait}'"},
    )
    watch = paper.start()
    scored(paper, {8: 0.9, 10: 0.1, 12: 0.2, 14: 0.3})
    for step in (8, 10, 12, 14):
        paper.checkpoint(step)
        watch.tick()
    go.touch()
    watch.finish()
    assert kept(paper) == [8, 10, 14]


def test_whatever_goes_wrong_after_a_checkpoint_is_said(paper: Paper, tmp_path: Path) -> None:
    for step in (5, 10):
        folder = paper.checkpoint(step)
    (paper.folder / "run.json").write_text("{")
    said: list[str] = []
    after_save(Actions(keep=1, keep_best=True), folder, 10, said.append, log=tmp_path / "log")
    (line,) = said
    assert line.startswith("after step 10: UserError: ")
    assert kept(paper) == [5, 10]


def test_a_command_ends_with_the_process_that_runs_it(tmp_path: Path) -> None:
    """Even where that is killed, and with all that the command had started."""
    command = f"sleep 60 & echo $$ $! > {tmp_path}/some; mv {tmp_path}/some {tmp_path}/pids; wait"
    script = f"from common.watcher import children\nchildren.run(['sh', '-c', {command!r}])"
    parent = subprocess.Popen([sys.executable, "-c", script])
    while not (tmp_path / "pids").exists():
        time.sleep(0.02)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(map(psutil.pid_exists, pids))
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_commands_own_processes_may_go_on_after_it(tmp_path: Path) -> None:
    done = children.run(["sh", "-c", f"(sleep 0.3; touch {tmp_path}/later) & exit 3"])
    assert done.returncode == 3
    time.sleep(0.6)
    assert (tmp_path / "later").exists()
