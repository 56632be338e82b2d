"""Self-play rounds: verl runs one after another in one run folder, each from where the last one ended.

    python -m common.launcher.rounds --run-dir DIR --checkpoints DIR --rounds 3 --steps 10 --keep 3
        --opponent group PYTHON -m verl.trainer.main_ppo --config-path ... --config-name config OVERRIDE ...

A round is the given command with other values for a few keys. verl resumes from the checkpoint that ended the
round before, so steps, data order and metrics go on; but the model it is started from is that checkpoint's
export, which therefore is the policy's start and the frozen reference alike, and the optimizer starts anew.
Which round to play is read from the checkpoints, so a run that was killed goes on in the round it was in.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from common.launcher import processes, runs
from common.launcher.errors import UserError, exit_with
from common.launcher.hydra_words import quote, replaced, value_of
from common.launcher.opponents import ensure_scores, scores_file
from common.launcher.supervise import say
from common.system import end_with_parent

ROUND_TAG = "VERL_TRAINING_ROUND"


@dataclass(frozen=True)
class Plan:
    """What the launcher decided: folders, number of rounds, steps in each, checkpoints to keep (0 = all)."""

    folder: Path
    checkpoints: Path
    rounds: int
    steps: int
    keep: int
    opponent: str
    command: list[str]

    def step_folder(self, step: int) -> Path:
        """verl's folder of a checkpoint."""
        return self.checkpoints / f"global_step_{step}"


def starting_model(plan: Plan, number: int) -> str:
    """Hugging Face folder of the policy that round *number* (2 or more) starts from; LoRA is folded in.

    Raises:
        UserError: the checkpoint that ended the round before is missing or incomplete.
    """
    from common.checkpoints import merge, resolve

    folder = plan.step_folder((number - 1) * plan.steps)
    if not folder.is_dir():
        raise UserError(
            f"round {number} starts from {folder}, which is missing: restore it, or start a new run"
        )
    # A round whose answers were all worth the same has taught an adapter nothing: the next one starts where it did.
    return merge(resolve(str(folder)), unchanged=True).path


def round_overrides(plan: Plan, number: int, step: int, model: str) -> dict[str, str]:
    """The keys that differ in round *number*.

    Args:
        number: of the round, from 1.
        step: the newest checkpoint's, 0 when there is none.
        model: the round's starting policy; unused in the first round.
    """
    end, fresh = number * plan.steps, step == (number - 1) * plan.steps
    overrides = {
        "trainer.total_training_steps": str(end),
        # Steps decide when a round ends; an epoch has one step or more, so this never ends it earlier.
        "trainer.total_epochs": str(end),
        "trainer.resume_mode": "auto" if step else "disable",
    }
    if plan.opponent != "group":
        overrides["+algorithm.preference.previous_scores"] = quote(str(scores_file(plan.folder, number)))
    if number == 1:
        return overrides
    name, end_quote = value_of(plan.command, "trainer.experiment_name"), ""
    if name.endswith('"'):
        name, end_quote = name[:-1], '"'
    overrides["trainer.experiment_name"] = f"{name}-round{number}{end_quote}"
    overrides["actor_rollout_ref.model.path"] = quote(model)
    if fresh:
        lora = value_of(plan.command, "actor_rollout_ref.model.lora_rank", "0") != "0"
        # The exact weights, where the model is not rounded by the export; with LoRA the adapter is in them.
        overrides["actor_rollout_ref.actor.checkpoint.load_contents"] = "[]" if lora else "[model]"
        tested = value_of(plan.command, "trainer.test_freq", "-1") != "-1"
        if tested and not value_of(plan.command, "trainer.val_before_train"):
            # The round before ended with a validation of this very policy.
            overrides["trainer.val_before_train"] = "False"
    return overrides


def prune(plan: Plan, protected: set[int]) -> None:
    """Delete all but the newest ``plan.keep`` checkpoints; verl itself forgets those of earlier rounds."""
    if not plan.keep:
        return
    steps = sorted(int(path.name.rpartition("_")[2]) for path in plan.checkpoints.glob("global_step_*"))
    whole = [step for step in steps if (plan.step_folder(step) / "actor").is_dir()]
    for step in set(steps) - set(whole[-plan.keep :]) - protected:
        shutil.rmtree(plan.step_folder(step))


class Rounds:
    """Plays the rounds of one launch."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stopping = False
        self.launched = False  # the supervisor's attempt is used up by the first round
        # The signal goes to the whole process group, so verl gets it too and ends; we only must not die of it.
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.stopping = True

    def run(self, command: list[str], environment: Mapping[str, str]) -> int:
        """Run verl once; what it leaves running is ended. Returns its exit code, 128 + N for a signal N."""
        if self.stopping:
            return 130
        tag = f"{os.environ.get(processes.TAG, 'rounds')}#{os.getpid()}"
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment, ROUND_TAG: tag},
            preexec_fn=partial(end_with_parent, os.getpid()),  # noqa: PLW1509  (no thread runs)
        )
        code = child.wait()
        processes.end_tagged(tag, variable=ROUND_TAG)
        return code if code >= 0 else 128 - code

    def play(self) -> int:
        """All rounds that are left; returns the exit code of the first that fails.

        Raises:
            UserError: verl ended well but not at the step where the round ends.
        """
        plan = self.plan
        while (step := runs.latest_step(plan.checkpoints) or 0) < plan.rounds * plan.steps:
            number = step // plan.steps + 1
            begin, end = (number - 1) * plan.steps, number * plan.steps
            prune(plan, {begin, step})
            model = starting_model(plan, number) if number > 1 else ""
            say(
                f"round {number} of {plan.rounds}, steps {step + 1} to {end}{f', from {model}' if model else ''}"
            )
            command = replaced(plan.command, round_overrides(plan, number, step, model))
            if plan.opponent != "group":
                code = ensure_scores(plan.folder, number, command, self.run)
                if code or self.stopping:
                    return code or 130
            metrics = self._attempt(number, step, command)
            code = self.run(command, {"VERL_FILE_LOGGER_PATH": str(metrics)})
            if code or self.stopping:
                return code or 130
            reached = runs.latest_step(plan.checkpoints) or 0
            if reached != end:
                raise UserError(
                    f"round {number}: verl ended without an error at step {reached}, the round ends at {end}; "
                    "see the console log"
                )
        prune(plan, set())
        return 0

    def _attempt(self, number: int, step: int, command: list[str]) -> Path:
        """Metrics file of the round: verl's file logger empties the one it opens."""
        folder = self.plan.folder
        if not (folder / "run.json").is_file():  # a command pasted from --dry-run
            folder.mkdir(parents=True, exist_ok=True)
            return folder / f"metrics-round-{number}.jsonl"
        record = runs.read(folder)
        attempt = record["attempts"][-1]
        if self.launched:
            attempt.update(end=runs.now(), exit_code=0)
            attempt = _next(folder, record, attempt, step)
        self.launched = True
        attempt.update(round=number, command=command)
        runs.write(folder, record)
        return folder / attempt["metrics"]


def _next(folder: Path, record: dict[str, Any], before: dict[str, Any], step: int) -> dict[str, Any]:
    """A new attempt under the same supervisor, whose console log goes on."""
    attempt = runs.open_attempt(folder, record, step)
    attempt.update({key: before[key] for key in ("console", "pid", "tag") if key in before})
    record["state"] = "running"
    return attempt


def main() -> None:
    """Entry point of ``python -m common.launcher.rounds``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True, help="in each round")
    parser.add_argument("--keep", type=int, required=True)
    parser.add_argument("--opponent", choices=["group", "previous", "both"], required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    own = parser.parse_args()
    plan = Plan(own.run_dir, own.checkpoints, own.rounds, own.steps, own.keep, own.opponent, own.command)
    sys.exit(Rounds(plan).play())


if __name__ == "__main__":
    exit_with(main)
