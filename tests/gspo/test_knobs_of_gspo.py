"""What gspo/train.sh hands to verl, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from launcher.conftest import Launcher
from launcher.test_bad_input import refused

from common.launcher.round_checks import check

FLAGS = ("--device", "cpu", "--no-preflight")


def test_default_objective(launch: Launcher) -> None:
    words = launch.dry_run(*FLAGS, "--name", "d", method="gspo")
    root = str(launch.output)
    assert words[1:15] == [
        *("-m", "common.launcher.rounds", "--run-dir", f"{root}/logs/gspo/d"),
        *("--checkpoints", f"{root}/checkpoints/gspo/d", "--rounds", "3", "--steps", "8"),
        *("--keep", "1", "--opponent", "group"),
    ]
    assert words[16:20] == [
        "-m",
        "verl.trainer.main_ppo",
        "--config-path",
        str(Path(__file__).parents[2] / "gspo"),
    ]
    keys = dict(word.split("=", 1) for word in words[words.index("--config-name") + 2 :])
    actor = "actor_rollout_ref.actor"
    expected = {
        "algorithm.adv_estimator": "preference",
        "+algorithm.preference.opponent": "group",
        "+algorithm.preference.margin": "0.0",
        "algorithm.norm_adv_by_std_in_grpo": "False",
        f"{actor}.policy_loss.loss_mode": "gspo",
        f"{actor}.loss_agg_mode": "seq-mean-token-mean",
        f"{actor}.clip_ratio_low": "3e-4",
        f"{actor}.clip_ratio_high": "4e-4",
        f"{actor}.use_kl_loss": "True",
        f"{actor}.ppo_mini_batch_size": "2",
        "data.train_batch_size": "8",
        "actor_rollout_ref.rollout.n": "8",
        "trainer.total_training_steps": "8",
    }
    assert {key: keys[key] for key in expected} == expected


def test_the_estimators_module_is_loaded_beside_the_cpu_plugin(launch: Launcher) -> None:
    done = launch(*FLAGS, "--dry-run", method="gspo")
    assert "VERL_USE_EXTERNAL_MODULES=common.cpu.plugin\\,gspo.plugin" in done.out
    plain = launch(*FLAGS, "--dry-run", "--advantage", "group", method="gspo")
    assert "gspo.plugin" not in plain.out
    assert "algorithm.adv_estimator=grpo" in plain.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--self_play_rounds", "0"], "SELF_PLAY_ROUNDS=0 must be 1 or more: 1 is GSPO without self-play"),
        (["--self_play_rounds", "-2"], "SELF_PLAY_ROUNDS=-2 must be 1 or more"),
        (["--mini_batch_size", "8"], "the importance ratio is always 1, so nothing is ever clipped"),
        (["--n", "1"], "ROLLOUT_N=1: GSPO compares the answers of one prompt"),
        (["--margin", "-0.5"], "MARGIN=-0.5 must be 0 or more"),
        (["--opponent", "both", "--advantage", "group"], "OPPONENT=both has no effect here"),
        (["--opponent", "previous", "--self_play_rounds", "1"], "use ADVANTAGE=preference with it"),
        (["--save_freq", "0"], "each round starts from the checkpoint of the one before"),
        (
            ["trainer.total_epochs=9"],
            "trainer.total_epochs is set anew in every self-play round: use TOTAL_EPOCHS",
        ),
        (["--advantage", "win_rate"], "ADVANTAGE='win_rate' must be one of auto, preference, group"),
    ],
)
def test_bad_input_is_one_clear_line(launch: Launcher, flags: list[str], message: str) -> None:
    done = launch(*FLAGS, *flags, method="gspo")
    refused(done, message)
    assert done.err.count("error: ") == 1


def test_what_is_unusual_but_right_is_taken(launch: Launcher) -> None:
    single = launch(*FLAGS, "--dry-run", "--mini_batch_size", "8", "--force", method="gspo")
    assert single.code == 0
    assert "warning: MINI_BATCH_SIZE=8 is the whole TRAIN_BATCH_SIZE" in single.err
    passes = "actor_rollout_ref.actor.ppo_epochs=2"
    assert launch(*FLAGS, "--dry-run", "--mini_batch_size", "8", passes, method="gspo").code == 0
    assert launch(*FLAGS, "--dry-run", "--n", "1", "--opponent", "previous", method="gspo").code == 0
    one = ("--self_play_rounds", "1", "--save_freq", "0", "trainer.total_epochs=9")
    assert launch(*FLAGS, "--dry-run", *one, method="gspo").code == 0


def test_rows_that_share_a_number_are_refused(tmp_path: Path) -> None:
    knobs = {
        "SELF_PLAY_ROUNDS": "2",
        "OPPONENT": "both",
        "ROLLOUT_N": "8",
        "SAVE_FREQ": "5",
        "ADVANTAGE": "auto",
    }
    knobs |= {"TRAIN_BATCH_SIZE": "8", "MINI_BATCH_SIZE": "2"}
    for numbers, count in (([0, 1, 2], 0), ([0, 1, 1], 1)):
        path = tmp_path / "train.parquet"
        pq.write_table(pa.table({"extra_info": [{"index": number} for number in numbers]}), path)
        problems = check(knobs, [], {}, 10, str(path), force=False)
        assert len(problems) == count
    assert "3 rows but only 2 different values of extra_info.index" in problems[0]
