"""From what a user types to a checkpoint: path, `last`, `last:grpo`, `best`, a run's name, `smollm2`, a hub id."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import replace
from pathlib import Path

from common.checkpoints import place
from common.checkpoints.errors import CheckpointError
from common.checkpoints.place import Checkpoint
from common.launcher import runs
from common.launcher.summary import lower_is_better, read_metrics, validation_key

ROOT = Path(__file__).resolve().parents[2]
ALIASES = ("last", "best")


def default_output() -> Path:
    """The launchers' OUTPUT_DIR where nobody sets one."""
    return ROOT / "outputs"


def checkpoint_roots(output: Path) -> list[Path]:
    """Every run's checkpoint folder with a complete checkpoint, the one saved last at the end."""
    marks = list((output / "checkpoints").glob("*/*/latest_checkpointed_iteration.txt"))
    return [mark.parent for mark in sorted(marks, key=lambda path: path.stat().st_mtime)]


def resolve(name: str, *, output: Path | None = None, step: int | None = None, base: str = "") -> Checkpoint:
    """The checkpoint that *name* means.

    Args:
        name: a folder (see `place.at`), `last` or `best` with an optional `:METHOD` or `:RUN`, a run's name
            (`RUN` or `METHOD/RUN`), `smollm2`, or a hub id. An existing folder wins over all others.
        output: the launchers' OUTPUT_DIR, searched for runs.
        step: of a run; None = the newest (`best`: the best).
        base: model of a LoRA adapter that does not name it, or names a folder that is gone.

    Raises:
        CheckpointError: nothing of that name, no checkpoint in it, or a broken one.
    """
    output = output or default_output()
    alias, _, what = name.partition(":")
    if not name:
        raise CheckpointError("no model named: give a folder, a hub id, last, best or a run's name")
    found = _existing(Path(name).expanduser(), step, base)
    if found is None and alias in ALIASES:
        root = _newest(output, what, name)
        if alias == "best" and step is None:
            step = best_step(root)[0]
        found = place.at(root, step, base)
    if found is None:
        named = _roots_named(output, name)
        if named:
            found = place.at(named[-1], step, base)
    if found is None:
        found = _hub_or_bundled(name, output)
    if step is not None and found.step is None:
        raise CheckpointError(f"step {step} was asked for, but {name} is no verl run")
    return found


def _existing(path: Path, step: int | None, base: str) -> Checkpoint | None:
    if path.is_dir():
        return place.at(path, step, base)
    if path.is_file():
        raise CheckpointError(f"{path} is a file; give the folder it is in")
    return None


def _roots_named(output: Path, name: str) -> list[Path]:
    """Checkpoint folders of the run *name*, newest last; runs that saved nothing are refused with that reason."""
    method, _, run = name.rpartition("/")
    if not run or "/" in method or run in (".", ".."):
        return []
    roots = [r for r in checkpoint_roots(output) if r.name == run and method in ("", r.parent.name)]
    if not roots:
        for logs in (output / "logs").glob(f"{method or '*'}/*/run.json"):
            if logs.parent.name == run:
                raise CheckpointError(
                    f"run {logs.parent.parent.name}/{run} has no complete checkpoint yet "
                    f"(SAVE_FREQ={(runs.read(logs.parent).get('knobs') or {}).get('SAVE_FREQ', '?')})"
                )
    return roots


def names_run(name: str, output: Path) -> bool:
    """Whether *name* is a run under *output*, with or without a checkpoint."""
    method, _, run = name.rpartition("/")
    if not all(re.fullmatch(r"[\w.+=@-]+", part) for part in (method or "any", run)):
        return False
    return any(any((output / kind).glob(f"{method or '*'}/{run}")) for kind in ("checkpoints", "logs"))


def _newest(output: Path, what: str, name: str) -> Path:
    roots = checkpoint_roots(output)
    if what:
        of_run = _roots_named(output, what)
        roots = of_run or [root for root in roots if root.parent.name == what]
    if not roots:
        known = ", ".join(sorted({f"{r.parent.name}/{r.name}" for r in checkpoint_roots(output)})[-5:])
        raise CheckpointError(
            f"{name}: no {what + ' ' if what else ''}run under {output} has saved a checkpoint"
            f"{f' (there are: {known})' if known else ''}; train one first, or name a folder or hub id"
        )
    return roots[-1]


def validation_scores(root: Path) -> tuple[str, dict[int, float]]:
    """(metric, its value by step) of a run's validations; ("", {}) where its metrics are not known."""
    logs = root.parents[2] / "logs" / root.parent.name / root.name
    if not (logs / "run.json").is_file():
        return "", {}
    metrics = read_metrics(logs, runs.read(logs))
    key = validation_key(metrics)
    if key is None:
        return "", {}
    values = {step: value[key] for step, value in metrics if value.get(key) is not None}
    return key, {step: value for step, value in values.items() if math.isfinite(value)}


def best_step(root: Path) -> tuple[int, str]:
    """(step, why) of the kept checkpoint with the best validation; the later one where two are equal.

    Raises:
        CheckpointError: no kept step was validated.
    """
    metric, scores = validation_scores(root)
    kept = {step: scores[step] for step in place.steps_of(root) if step in scores}
    if not kept:
        raise CheckpointError(
            f"best: no kept checkpoint of {root.parent.name}/{root.name} was validated"
            f"{' (no validation metric in its log)' if not metric else ''}; "
            "set TEST_FREQ to a divisor of SAVE_FREQ, or use last"
        )
    sign = -1 if lower_is_better(metric) else 1
    step = max(kept, key=lambda number: (sign * kept[number], number))
    return step, f"{metric} = {kept[step]:.4g} at step {step}"


def _hub_or_bundled(name: str, output: Path) -> Checkpoint:
    from common.cpu.model import MODEL_ALIAS, ModelUnavailableError, resolve_model_path
    from common.launcher.checks import check_model, is_local_path
    from common.launcher.errors import UserError

    try:
        if name == MODEL_ALIAS:
            return replace(place.at(Path(resolve_model_path(name))), root=None)
        if not is_local_path(name):
            return Checkpoint("hub", check_model(name))
    except ModelUnavailableError as error:
        raise CheckpointError(str(error)) from None
    except UserError as error:
        raise CheckpointError(str(error).replace("MODEL_PATH=", "")) from None
    known = [r.name for r in checkpoint_roots(output)] + [*ALIASES, MODEL_ALIAS]
    near = difflib.get_close_matches(name, known, n=1)
    raise CheckpointError(
        f"{name} is neither a folder, a run under {output}, nor a hub id owner/name"
        f"{f'; did you mean {near[0]}?' if near else ''} (python -m common.checkpoints list shows the runs)"
    )
