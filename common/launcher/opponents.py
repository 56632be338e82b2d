"""One answer of the previous round's policy to every training prompt, sampled and scored by verl itself.

verl's own validation does the work (``trainer.val_only``): the round's starting policy answers the training
prompts with the run's sampling settings, the run's reward scores them. The reward's records say which row each
score belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from common.data_utils.atomic import write_text
from common.launcher.errors import UserError
from common.launcher.hydra_words import quote, replaced, value_of
from common.reward_functions.records import read_lines

_REWARD = "reward.custom_reward_function.reward_kwargs"
_ROLLOUT = "actor_rollout_ref.rollout"


def scores_file(folder: Path, round_number: int) -> Path:
    """Where the scores for a round are: JSON, ``extra_info.index`` -> score."""
    return folder / "opponents" / f"round-{round_number}.json"


def pass_overrides(command: list[str], folder: Path) -> dict[str, str]:
    """What turns a round's *command* into the pass that answers every training prompt once, into *folder*."""
    return {
        "trainer.val_only": "True",
        "trainer.val_before_train": "True",
        "trainer.resume_mode": "disable",
        "trainer.logger": "[console,file]",
        "trainer.validation_data_dir": quote(str(folder)),
        "data.val_files": value_of(command, "data.train_files"),
        "data.val_batch_size": "1024",
        f"{_ROLLOUT}.val_kwargs.do_sample": "True",
        f"{_ROLLOUT}.val_kwargs.temperature": value_of(command, f"{_ROLLOUT}.temperature", "1.0"),
        f"{_ROLLOUT}.val_kwargs.n": "1",
        # No update follows, so no reference policy is needed.
        "actor_rollout_ref.actor.use_kl_loss": "False",
        f"+{_REWARD}.parts_dir": quote(str(folder)),
    }


def ensure_scores(
    folder: Path, round_number: int, command: list[str], run: Callable[[list[str], Mapping[str, str]], int]
) -> int:
    """Make the scores for a round unless they are there; returns the exit code of verl, 0 when all is well.

    Args:
        folder: the run's folder.
        command: the round's command; its model is the one that answers.
        run: runs a command with additional environment variables and returns its exit code.

    Raises:
        UserError: verl scored no answer.
    """
    target = scores_file(folder, round_number)
    if target.is_file():
        return 0
    answers = target.with_suffix("")
    answers.mkdir(parents=True, exist_ok=True)
    for stale in answers.glob("reward_*"):  # of a pass that was killed
        stale.unlink()
    code = run(
        replaced(command, pass_overrides(command, answers)),
        {"VERL_FILE_LOGGER_PATH": str(answers / "metrics.jsonl")},
    )
    if code:
        return code
    scores = {str(line["index"]): line["parts"]["score"] for line in read_lines(answers)}
    if not scores:
        raise UserError(
            f"round {round_number}: the previous policy's answers were not scored (see the console log)"
        )
    write_text(target, json.dumps(scores))
    return 0
