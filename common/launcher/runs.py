"""Run folders: ``<OUTPUT_DIR>/logs/<method>/<run>/`` and ``<OUTPUT_DIR>/checkpoints/<method>/<run>/``.

``run.json`` holds everything about a run; each launch of it is an *attempt* with its own metrics file and
console log, because verl's file logger empties the file it opens.

Standard library only.
"""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data_utils.atomic import write_text
from common.launcher.errors import UserError

SCHEMA = 1
FINISHED = "finished"


@dataclass(frozen=True)
class ResumableRun:
    """A run to go on with: its name, its own knob values and its own verl overrides."""

    name: str
    knobs: dict[str, str]
    extra: list[str]


def now() -> str:
    """Local time in ISO format, to the second, with offset."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def logs_dir(output: Path, method: str) -> Path:
    """Folder of all runs of *method*."""
    return output / "logs" / method


def checkpoint_dir(output: Path, method: str, run: str) -> Path:
    """verl's ``trainer.default_local_dir`` of a run."""
    return output / "checkpoints" / method / run


def read(folder: Path) -> dict[str, Any]:
    """Contents of a run's ``run.json``.

    Raises:
        UserError: missing or damaged.
    """
    path = folder / "run.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError
        return found
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): this is not a run folder") from None
    except ValueError:
        raise UserError(f"{path} is damaged (no JSON object): restore it, or start a new run") from None


def write(folder: Path, record: dict[str, Any]) -> None:
    """Replace ``run.json`` in one step, so that a reader or a kill never sees half a file."""
    write_text(folder / "run.json", json.dumps(record, indent=1, ensure_ascii=False))


def latest_step(checkpoints: Path) -> int | None:
    """Newest step that verl recorded as complete, ``latest_checkpointed_iteration.txt``."""
    try:
        return int((checkpoints / "latest_checkpointed_iteration.txt").read_text().strip())
    except (OSError, ValueError):
        return None


def find_resumable(output: Path, method: str, wanted: str) -> ResumableRun:
    """The run that ``--resume`` means: ``last``, a run's name, or a path to its folder.

    Raises:
        UserError: no such run, nothing to resume from, or it is already finished.
    """
    root = logs_dir(output, method)
    records = sorted(root.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    if wanted in ("last", "auto", "true"):
        if not records:
            raise UserError(f"--resume: there is no {method} run under {root}; start one without --resume")
        folder = records[-1].parent
    else:
        folder = root / wanted if (root / wanted / "run.json").is_file() else Path(wanted)
        if not (folder / "run.json").is_file():
            names = ", ".join(path.parent.name for path in records[-5:]) or "none"
            raise UserError(f"--resume: no {method} run '{wanted}' under {root} (newest runs: {names})")
    record = read(folder)
    if not isinstance(record.get("knobs"), dict):
        raise UserError(
            f"--resume: {folder / 'run.json'} is damaged (no knobs): restore it, or start a new run"
        )
    if record.get("method") != method:
        raise UserError(f"--resume: {folder} is a {record.get('method')} run, this is {method}/train.sh")
    name = folder.resolve().name
    if latest_step(checkpoint_dir(output, method, name)) is None:
        raise UserError(
            f"--resume: run {name} has no checkpoint to go on from (SAVE_FREQ was {record['knobs'].get('SAVE_FREQ')}); "
            "start a new run"
        )
    return ResumableRun(name, dict(record["knobs"]), list(record.get("extra", [])))


def unique_name(output: Path, method: str) -> str:
    """``<method>-<date>-<time>``, with a number behind when two start in one second."""
    base = f"{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    name, number = base, 2
    while (logs_dir(output, method) / name).exists() or checkpoint_dir(output, method, name).exists():
        name, number = f"{base}-{number}", number + 1
    return name


def check_new_name(output: Path, method: str, name: str) -> None:
    """Refuse a name that cannot be a folder, or whose folder already holds a run.

    Raises:
        UserError: with what to do.
    """
    if not re.fullmatch(r"(?!\.+$)[\w.+=@-]{1,200}", name):
        raise UserError(
            f"EXPERIMENT_NAME='{name}' becomes a folder name: use up to 200 letters, digits, '.', '_', '-', '+', "
            "'=', '@'"
        )
    for folder in (logs_dir(output, method) / name, checkpoint_dir(output, method, name)):
        if folder.exists() and any(folder.iterdir()):
            raise UserError(
                f"{folder} already holds a run: choose another EXPERIMENT_NAME, or go on with --resume {name}"
            )


def add_attempt(record: dict[str, Any], resumed_from: int | None) -> dict[str, Any]:
    """Add an attempt to *record*; returns it with its file names."""
    number = len(record.setdefault("attempts", [])) + 1
    attempt = {
        "n": number,
        "start": now(),
        "end": None,
        "exit_code": None,
        "resumed_from_step": resumed_from,
        "metrics": f"metrics-{number}.jsonl",
        "console": f"console-{number}.log",
        "host": socket.gethostname(),
        "pid": None,
    }
    record["attempts"].append(attempt)
    record["state"] = "starting"
    return attempt


def open_attempt(folder: Path, record: dict[str, Any], resumed_from: int | None) -> dict[str, Any]:
    """Add an attempt to *record* and write it; returns the attempt."""
    attempt = add_attempt(record, resumed_from)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, record)
    return attempt


def begin(folder: Path, planned: Path) -> None:
    """Make the run folder, with the record that the launcher planned; the file *planned* is removed.

    Nothing is left of a launch that is refused before this.

    Raises:
        UserError: another launch was faster: it took the name, or went on with the run.
    """
    record = json.loads(planned.read_text(encoding="utf-8"))
    planned.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    earlier = len(record["attempts"]) - 1
    try:
        if earlier:
            taken = len(read(folder)["attempts"]) != earlier
        else:
            (folder / "run.json").touch(exist_ok=False)
            taken = False
    except FileExistsError:
        taken = True
    if taken:
        raise UserError(f"{folder}: another launch of this run was faster; start again")
    write(folder, record)
