"""Where results go: the file that was asked for, and beside it the record that it is made from."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

SUFFIXES = (".xlsx", ".json", ".jsonl", ".csv")


def record_path(output: Path) -> Path:
    """`results.xlsx` -> `results.jsonl`: one line per finished sample."""
    return output.with_suffix(".jsonl")


def meta_path(output: Path) -> Path:
    """`results.run.json`: settings, versions, the command, the scores."""
    return output.with_suffix(".run.json")


def scores_path(output: Path) -> Path:
    """`results.scores.jsonl`: scores while they come in; gone when the record is complete."""
    return output.with_suffix(".scores.jsonl")


def automatic(folder: Path, model: str, data: str, settings: dict[str, Any]) -> Path:
    """A name that the same call gets again, so that a rerun goes on, and no other call gets."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
    short = re.sub(r"[^\w.-]+", "-", model).strip("-.")[-60:]
    return folder / f"{short}--{data}-{key}.xlsx"
