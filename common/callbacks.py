"""What happens after a checkpoint: thin out old ones, keep the best, export to Hugging Face, run a command.

The watcher calls `after_save` for every method: verl 0.9.1 has a hook only for RL's V1 trainer, and there it runs
inside the training, before the step's validation, where a slow export would hold up every GPU and an exception would
end the run. For runs that are started without our launchers, `AfterSave` is that hook:

    trainer.checkpoint_callback_class=common.callbacks.AfterSave '+trainer.after_save={keep: 3, keep_best: true}'
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.checkpoints import housekeeping, naming, place
from common.checkpoints.errors import CheckpointError
from common.launcher import runs
from common.launcher.errors import UserError
from common.watcher import children

ROOT = Path(__file__).resolve().parents[1]
EXPORTED = "merged_hf"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Actions:
    """What to do after each checkpoint.

    Attributes:
        keep: newest steps kept; 0 = all.
        keep_best: keep the step with the best validation too. verl knows only `max_ckpt_to_keep`, which forgets
            what earlier attempts wrote and does not look at validations.
        export: write the model with its LoRA folded in to `global_step_N/merged_hf`.
        command: program and arguments; `{checkpoint}`, `{step}` and `{run}` are filled in. No shell reads it.
    """

    keep: int = 0
    keep_best: bool = False
    export: bool = False
    command: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.keep_best or self.export or bool(self.command)


def actions_of(knobs: Mapping[str, str]) -> Actions:
    """The actions that a launch asks for by KEEP_CHECKPOINTS, KEEP_BEST, EXPORT_HF and ON_SAVE.

    Raises:
        UserError: ON_SAVE cannot be split into words, or names something unknown in braces.
    """
    try:
        command = tuple(shlex.split(knobs.get("ON_SAVE", "")))
        for word in command:
            word.format(checkpoint="", step=0, run="")
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(
            f"ON_SAVE='{knobs.get('ON_SAVE')}' cannot be read ({error}): give a program and its arguments, quoted as "
            "in a shell; {checkpoint}, {step} and {run} are filled in"
        ) from None
    return Actions(
        int(knobs.get("KEEP_CHECKPOINTS") or 0),
        knobs.get("KEEP_BEST") == "true",
        knobs.get("EXPORT_HF") == "true",
        command,
    )


def rotate(root: Path, keep: int, *, keep_best: bool, protected: set[int] | None = None) -> list[Path]:
    """Delete all but the *keep* newest steps of a run, the one to resume from and the best one.

    Args:
        root: verl's `default_local_dir`.
        keep: 0 = all.
        protected: steps that something else needs.

    Returns:
        The deleted folders.

    Raises:
        CheckpointError: a folder cannot be deleted.
    """
    steps = place.steps_of(root)
    spared = {*list(steps)[-keep:], runs.latest_step(root), *(protected or set())}
    if not keep or len(steps) <= keep:
        return []
    if keep_best:
        try:
            spared.add(naming.best_step(root)[0])
        except CheckpointError:
            return []  # nothing was validated yet: any of them may be the best
    going = [folder for step, folder in steps.items() if step not in spared]
    for folder in going:
        housekeeping.remove(folder)
    return going


def export(folder: Path) -> Path:
    """The model of a checkpoint as a Hugging Face folder inside it, in a process of its own.

    Raises:
        CheckpointError: with the last line that the export printed.
    """
    target = folder / EXPORTED
    command = [sys.executable, "-m", "common.checkpoints", "export", str(folder), str(target)]
    done = children.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace")
    if done.returncode:
        raise CheckpointError(
            f"exporting {folder}: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}"
        )
    return target


def run_command(command: tuple[str, ...], folder: Path, step: int, log: Path) -> None:
    """Run the user's command; its output goes to *log*.

    Raises:
        CheckpointError: it cannot be started or ended with an error.
    """
    run = f"{folder.parent.parent.name}/{folder.parent.name}"
    words = [word.format(checkpoint=str(folder), step=step, run=run) for word in command]
    try:
        with log.open("ab") as out:
            out.write(f"$ {shlex.join(words)}\n".encode())
            out.flush()
            done = children.run(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    except OSError as error:
        raise CheckpointError(f"ON_SAVE: {words[0]} cannot be run: {error.strerror or error}") from None
    if done.returncode:
        raise CheckpointError(f"ON_SAVE: {words[0]} ended with exit code {done.returncode}, see {log}")


def after_save(
    actions: Actions, folder: Path, step: int, say: Say, *, log: Path, protected: Callable[[], set[int]] = set
) -> None:
    """Do what is asked for after the checkpoint *folder*; what fails is said and stops nothing.

    Args:
        folder: `<checkpoints>/global_step_N`, complete.
        log: where the command's output goes.
        protected: as in `rotate`; asked when it comes to that, since an export may take longer than many steps.
    """

    def attempt(act: Callable[[], Any]) -> Any:
        try:
            return act()
        except CheckpointError as error:
            say(str(error))
        except Exception as error:
            say(f"after step {step}: {type(error).__name__}: {error}")
        return None

    if actions.export and (target := attempt(lambda: export(folder))):
        say(f"step {step} exported to {target}")
    if actions.command:
        attempt(lambda: run_command(actions.command, folder, step, log))
    if actions.keep_best:
        root = folder.parent

        def thin_out() -> list[Path]:
            # Later ones still wait for their own actions.
            later = {other for other in place.steps_of(root) if other > step}
            return rotate(root, actions.keep, keep_best=True, protected=protected() | later)

        if gone := attempt(thin_out):
            say(
                f"deleted {', '.join(path.name for path in gone)} (KEEP_CHECKPOINTS={actions.keep}, best kept)"
            )


class AfterSave:
    """verl's `CheckpointCallback` by its shape; importing verl here would cost the watcher a torch."""

    def __init__(self, config: Any = None) -> None:
        own = dict(config.trainer.get("after_save") or {}) if config is not None else {}
        known = set(Actions.__dataclass_fields__)
        if unknown := sorted(set(own) - known):
            raise ValueError(
                f"trainer.after_save: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}"
            )
        own["command"] = tuple(own.get("command") or ())
        self.actions = Actions(**own)

    def on_save(
        self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **_: Any
    ) -> None:
        """Called by verl when a checkpoint is complete (not when it is still being written asynchronously)."""
        if async_save:
            return
        folder = Path(checkpoint_dir)
        if self.actions.keep and not self.actions.keep_best:
            rotate(folder.parent, self.actions.keep, keep_best=False)
        after_save(self.actions, folder, global_step, print, log=folder.parent / "on_save.log")
