"""The rows of the input file as conversations with what a reward needs; read as training data is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.data_utils import DataError, Options, RowError, load_rows
from common.data_utils.converters import split_last
from common.data_utils.detect import make_plan
from common.data_utils.records import Message, Plan, Row
from common.data_utils.targets import convert_row
from common.data_utils.verl_rows import restore_tools
from common.launcher.errors import UserError

# Columns and extra_info keys that usually say which part of a test a row belongs to.
GROUPS = (
    *("data_source", "category", "subject", "topic", "type", "level", "difficulty", "task"),
    *("tags", "tag", "language"),
)
_PLAIN = ("query", "input", "text", "instruction", "problem")
MOST_GROUPS = 200


@dataclass(frozen=True)
class Item:
    """One row.

    Attributes:
        index: position in the file, from 0.
        messages: the conversation up to where the model speaks.
        ground_truth: None where the row has none.
        extra_info: as a reward gets it in training.
        row: the row as it stands in the file.
        error: why it cannot be used; it still counts in every score.
    """

    index: int
    messages: list[Message]
    data_source: str = ""
    ground_truth: Any = None
    extra_info: dict[str, Any] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def tools(self) -> Any:
        """Tool schemas for the template; None without."""
        return restore_tools(self.extra_info.get("tools")) if self.extra_info.get("tools") else None


def load_items(
    source: str, *, limit: int = 0, prompt_field: str = "", answer_field: str = ""
) -> tuple[list[Item], str]:
    """(items, what the file was taken for).

    Args:
        source: a file, folder or hub dataset, as the launchers take it.
        limit: only the first rows; 0 = all.
        prompt_field, answer_field: columns, where their names are unusual.

    Raises:
        UserError: nothing there, not readable, no rows, or no prompt found in them.
    """
    rows: list[Row] = []
    try:
        for row in load_rows(source):
            rows.append(row)
            if limit and len(rows) >= limit:
                break
    except DataError as error:
        raise UserError(f"--input_file {error}") from None
    if not rows:
        raise UserError(f"--input_file {source} holds no rows")
    for name, value in (("prompt_field", prompt_field), ("answer_field", answer_field)):
        if value and not any(value in row for row in rows):
            raise UserError(f"--{name} {value}: the file has the columns {', '.join(map(str, rows[0]))}")
    plan, reason, renamed = _plan(rows, source, prompt_field, answer_field)
    items = [_item(index, row, plan, renamed) for index, row in enumerate(rows)]
    broken = [item for item in items if item.error]
    if len(broken) == len(items):
        raise UserError(f"--input_file {source}: row 1: {items[0].error}")
    return items, reason


def _plan(rows: list[Row], source: str, prompt: str, answer: str) -> tuple[Plan, str, dict[str, str]]:
    """(plan, reason, columns to rename first): the launchers' detection, then prompts under a usual name."""
    renames: dict[str, str] = {}
    if prompt and prompt not in ("prompt", "messages", "conversations"):
        renames[prompt] = "prompt"
    if answer and answer != "ground_truth":
        renames[answer] = "ground_truth"
    options = Options(ground_truth="optional")
    sample = [_rename(row, renames) for row in rows[:200]]
    try:
        plan = make_plan(sample, "rl", options, source, "test")
        return plan, plan.reason, renames
    except DataError as error:
        plain = next((name for name in _PLAIN if all(isinstance(row.get(name), str) for row in sample)), "")
        if prompt or not plain:
            raise UserError(
                f"--input_file {error.problems[0].split('; name yours')[0]}; or --prompt_field"
            ) from None
    renames[plain] = "prompt"
    plan = make_plan([_rename(row, renames) for row in sample], "rl", options, source, "test")
    return plan, f"prompts in column {plain}", renames


def _rename(row: Row, renames: dict[str, str]) -> Row:
    """The row under the names that the converters know; a column that had such a name steps aside."""
    taken = set(renames.values())
    kept = {name: value for name, value in row.items() if name not in taken or name in renames}
    return {renames.get(name, name): value for name, value in kept.items()}


def _item(index: int, row: Row, plan: Plan, renames: dict[str, str]) -> Item:
    try:
        converted = convert_row(_without_answer(_rename(row, renames), plan), plan)
    except RowError as error:
        return Item(index, [], row=row, error=f"row {index + 1}: {error}")
    truth = converted["reward_model"]["ground_truth"]
    extra = converted["extra_info"]
    extra.setdefault("index", index)
    return Item(
        index,
        converted["prompt"],
        converted["data_source"],
        None if truth == "" else truth,
        extra,
        row,
    )


def _without_answer(row: Row, plan: Plan) -> Row:
    """verl rows whose prompt carries the answer too lose it: the model must speak next."""
    column = plan.columns.get("prompt", "prompt")
    turns = row.get(column)
    if plan.format == "verl" and isinstance(turns, list) and turns and turns[-1].get("role") == "assistant":
        return {**row, column: split_last(turns)[0]}
    return row


def groups_of(item: Item, wanted: tuple[str, ...]) -> dict[str, list[str]]:
    """Column -> the item's groups there; a list of tags puts it into several."""
    found: dict[str, list[str]] = {}
    for name in wanted:
        value = item.row.get(
            name, item.extra_info.get(name, item.data_source if name == "data_source" else None)
        )
        values = value if isinstance(value, list) else [value]
        texts = [str(v) for v in values if v is not None and not isinstance(v, dict | list) and str(v)]
        if texts:
            found[name] = texts
    return found


def group_columns(items: list[Item], wanted: str) -> tuple[str, ...]:
    """The columns to group by: those asked for, else the usual ones that have two groups or more.

    Raises:
        UserError: a column that no row has.
    """
    if wanted:
        names = tuple(name.strip() for name in wanted.split(",") if name.strip())
        for name in names:
            if not any(groups_of(item, (name,)) for item in items):
                raise UserError(f"--group_by {name}: no row has it; columns: {', '.join(items[0].row)}")
        return names
    useful = []
    for name in GROUPS:
        values = {value for item in items for value in groups_of(item, (name,)).get(name, [])}
        if 2 <= len(values) <= min(MOST_GROUPS, max(2, len(items) // 2)):
            useful.append(name)
    return tuple(useful)


def digest(items: list[Item]) -> str:
    """Fingerprint of what is asked: same prompts and truths, same digest, whatever the file is called."""
    sha = hashlib.sha256()
    for item in items:
        sha.update(json.dumps([item.messages, item.ground_truth], default=str, sort_keys=True).encode())
    return sha.hexdigest()[:16]


def data_name(source: str) -> str:
    """Short name of the data, for file names."""
    return Path(source.rstrip("/")).name.split(".")[0] or "data"
