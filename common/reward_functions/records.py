"""Append-only JSONL files that many reward processes write side by side, and the marker that stops a run."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MARKER = "reward_error.json"
PARTS = "reward_parts"
ERRORS = "reward_errors"
KEYS = "reward_keys.json"


class Lines:
    """One JSONL file of this process: `<folder>/<stem>-<host>-<pid>.jsonl`, opened at the first line.

    A line is one write() to a file opened with O_APPEND, so threads need no lock and a crash tears no line.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self.path = folder / f"{stem}-{socket.gethostname()}-{os.getpid()}.jsonl"
        self._descriptor: int | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; what JSON does not know is written as its repr."""
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        text = json.dumps(record, ensure_ascii=False, default=repr)
        os.write(self._descriptor, text.encode("utf-8", "backslashreplace") + b"\n")


def claim(path: Path, content: Mapping[str, Any]) -> bool:
    """Write `content` to `path` unless another process was first; True for the one that wrote it.

    The file appears complete or not at all (written aside, then linked).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}")
    aside.write_text(json.dumps(content, ensure_ascii=False, default=repr, indent=1), encoding="utf-8")
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink()
    return True


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a file that `claim` wrote."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def read_marker(folder: Path) -> dict[str, Any] | None:
    """The error that stopped a run (`message`, `traceback`, `sample`, ...), or None."""
    return read_json(folder / MARKER) if (folder / MARKER).exists() else None


def drop_marker(folder: Path) -> None:
    """Forget the error that stopped an earlier attempt in the same folder: it would stop the next one too."""
    (folder / MARKER).unlink(missing_ok=True)


def read_lines(folder: Path, stem: str = PARTS) -> Iterator[dict[str, Any]]:
    """Every whole record of every process, file by file; a line still being written is left for later."""
    for path in sorted(folder.glob(f"{stem}-*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield json.loads(line)


def summarise(folder: Path) -> list[dict[str, Any]]:
    """Per step and split: samples, errors and the mean of every numeric part, for a monitor or callback.

    Returns:
        Rows sorted by step, each `{"step", "split", "samples", "reward_errors", "<part>": mean}`.
    """
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for record in read_lines(folder):
        step = record.get("step")
        groups.setdefault((-1 if step is None else int(step), record.get("split") or ""), []).append(record)
    rows = []
    for (step, split), records in sorted(groups.items()):
        row: dict[str, Any] = {"step": step, "split": split, "samples": len(records)}
        row["reward_errors"] = sum(int(r["parts"].get("reward_error", 0)) for r in records)
        for key in dict.fromkeys(k for r in records for k in r["parts"] if k != "reward_error"):
            numbers = [r["parts"][key] for r in records if isinstance(r["parts"].get(key), int | float)]
            if numbers:
                row[key] = sum(numbers) / len(numbers)
        rows.append(row)
    return rows
