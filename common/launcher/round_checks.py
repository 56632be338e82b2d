"""GSPO's knobs and self-play rounds: what is refused before anything starts, a line each."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.launcher.checks import number

# Rounds set these themselves, so an override of the user's would fall on every round.
OWNED = {
    "trainer.total_training_steps": "TOTAL_STEPS",
    "trainer.total_epochs": "TOTAL_EPOCHS",
    "trainer.resume_mode": "RESUME",
    "trainer.resume_from_path": "RESUME",
    "trainer.default_local_dir": "OUTPUT_DIR",
    "actor_rollout_ref.model.path": "MODEL_PATH",
    "actor_rollout_ref.actor.checkpoint.load_contents": "RESUME",
}


def rounds_of(knobs: dict[str, str]) -> int:
    """SELF_PLAY_ROUNDS, 1 where the method has no rounds."""
    return max(1, number(knobs, "SELF_PLAY_ROUNDS"))


def check(
    knobs: dict[str, str], extra: list[str], record: dict[str, Any], steps: int, train_file: str, force: bool
) -> list[str]:
    """One line per mistake; [] for a method without SELF_PLAY_ROUNDS.

    Args:
        extra: verl overrides of the user.
        record: ``run.json`` of the run to resume, {} for a new one.
        steps: of all rounds together, 0 when not known.
        train_file: training Parquet in verl's schema, "" when not known.
        force: ``--force`` was given: what is unwise but possible becomes a warning on stderr.
    """
    if "SELF_PLAY_ROUNDS" not in knobs:
        return []
    rounds = number(knobs, "SELF_PLAY_ROUNDS")
    if rounds < 1:
        return [f"SELF_PLAY_ROUNDS={rounds} must be 1 or more: 1 is GSPO without self-play, 3 is usual"]
    problems = _advantage(knobs, rounds)
    unwise = _updates(knobs, extra)
    if unwise and force:
        print(f"warning: {unwise} (--force: going on)", file=sys.stderr)
    elif unwise:
        problems.append(f"{unwise}; --force goes on")
    if rounds > 1:
        problems += _continuation(knobs, extra)
    if rounds > 1 or rounds_of(record.get("knobs", {})) > 1:
        problems += _same_rounds(record, steps // rounds)
    if train_file and knobs.get("OPPONENT", "group") != "group":
        problems += _distinct_rows(Path(train_file))
    return problems


def _advantage(knobs: dict[str, str], rounds: int) -> list[str]:
    problems = []
    preference = knobs.get("ADVANTAGE") == "preference" or (knobs.get("ADVANTAGE") == "auto" and rounds > 1)
    opponent, n = knobs.get("OPPONENT", "group"), number(knobs, "ROLLOUT_N")
    if opponent != "group" and not preference:
        problems.append(
            f"OPPONENT={opponent} has no effect here: the paper's advantage knows no opponents; use "
            "ADVANTAGE=preference with it"
        )
    if n == 1 and not (preference and opponent == "previous"):
        problems.append(
            "ROLLOUT_N=1: GSPO compares the answers of one prompt, so it needs 2 or more (8-12 is usual)"
        )
    if float(knobs.get("MARGIN") or 0) < 0:
        problems.append(f"MARGIN={knobs['MARGIN']} must be 0 or more: score differences up to it are a tie")
    return problems


def _updates(knobs: dict[str, str], extra: Iterable[str]) -> str:
    """GSPO clips only from the second update on a rollout on; the first one's ratio is exactly 1."""
    batch, mini = number(knobs, "TRAIN_BATCH_SIZE"), number(knobs, "MINI_BATCH_SIZE")
    passes = [
        word.partition("=")[2]
        for word in extra
        if word.lstrip("+").startswith("actor_rollout_ref.actor.ppo_epochs=")
    ]
    if mini != batch or (passes and passes[-1] != "1"):
        return ""
    smaller = f"MINI_BATCH_SIZE={max(1, batch // 4)}" if batch > 1 else "a larger TRAIN_BATCH_SIZE"
    return (
        f"MINI_BATCH_SIZE={mini} is the whole TRAIN_BATCH_SIZE: with one update per rollout the importance ratio "
        f"is always 1, so nothing is ever clipped and this is not GSPO; use {smaller}"
    )


def _continuation(knobs: dict[str, str], extra: Iterable[str]) -> list[str]:
    problems = []
    if number(knobs, "SAVE_FREQ", 0) < 1:
        problems.append(
            f"SAVE_FREQ={knobs.get('SAVE_FREQ')} saves nothing, but each round starts from the checkpoint of the one "
            "before: use SAVE_FREQ=20 or more (a round's end is saved in any case), or SELF_PLAY_ROUNDS=1"
        )
    for word in extra:
        key = word.partition("=")[0].lstrip("+~")
        if key in OWNED:
            problems.append(
                f"{key} is set anew in every self-play round: use {OWNED[key]}, or SELF_PLAY_ROUNDS=1"
            )
    return problems


def _same_rounds(record: dict[str, Any], length: int) -> list[str]:
    """A resumed run keeps the length of its rounds: checkpoints lie where they ended."""
    before = record.get("steps_per_round")
    if not before or not length or before == length:
        return []
    return [
        f"this run's rounds have {before} steps, with these settings they would have {length}: resume with the "
        "TOTAL_STEPS, TOTAL_EPOCHS, TRAIN_BATCH_SIZE and data of its start (SELF_PLAY_ROUNDS may grow)"
    ]


def _distinct_rows(train_file: Path) -> list[str]:
    """Answers of the previous policy are kept by ``extra_info.index``, so rows must not share one."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    numbers = pc.struct_field(pq.read_table(train_file, columns=["extra_info"])["extra_info"], "index")
    rows, distinct = len(numbers), pc.count_distinct(numbers).as_py()
    if rows == distinct:
        return []
    return [
        f"TRAIN_DATA has {rows} rows but only {distinct} different values of extra_info.index, by which "
        "OPPONENT=previous finds a prompt again: number the rows, or leave the column out (it is then added)"
    ]
