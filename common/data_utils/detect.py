"""Which format is this file? Decided from its first rows, with the reason said, and turned into a plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from common.data_utils import formats
from common.data_utils.answers import extract_answer
from common.data_utils.errors import DataError
from common.data_utils.messages import KEPT_KEYS
from common.data_utils.records import TASKS, Options, Plan, Row
from common.data_utils.targets import MEDIA

SAMPLE_ROWS = 200


def _columns(sample: Sequence[Row]) -> list[str]:
    seen: dict[str, None] = {}
    for row in sample:
        seen.update(dict.fromkeys(row))
    return list(seen)


def _check_map(given: dict[str, str], present: Sequence[str], name: str) -> None:
    problems = []
    for field, column in given.items():
        if field not in formats.ALIASES:
            known = ", ".join(sorted(formats.ALIASES))
            problems.append(f"column map: unknown field {field!r}; fields: {known}")
        elif column not in present:
            problems.append(f"{name}: column map: no column {column!r}; the file has: {', '.join(present)}")
    if problems:
        raise DataError(*problems)


def detect(
    sample: Sequence[Row], task: str | None, options: Options, name: str
) -> tuple[str, dict[str, str], str]:
    """(format, column map, reason) for rows that start a file.

    Raises:
        DataError: nothing fits; what the file has and what the formats need is listed.
    """
    present = _columns(sample)
    _check_map(options.columns, present, name)
    wanted = (
        [formats.get_format(options.format)] if options.format != "auto" else list(formats.FORMATS.values())
    )
    unfit: list[str] = []
    for item in wanted:
        columns = formats.resolve_columns(item, present, options.columns)
        if columns is None:
            continue
        fit = sum(_looks(item, row, columns) for row in sample)
        if options.format == "auto" and fit * 2 < len(sample):
            continue
        shown = ", ".join(f"{field}={column}" for field, column in columns.items() if field in item.required)
        if task is not None and task not in item.tasks:
            unfit.append(f"{name}: is {item.name} data ({shown}), which cannot become {task} rows")
            continue
        reason = (
            "asked for"
            if options.format != "auto"
            else f"{fit} of the first {len(sample)} rows have its shape"
        )
        return item.name, columns, f"{item.name} ({shown}): {reason}"
    if unfit:
        raise DataError(f"{unfit[0]}; it can become: {', '.join(_tasks_of(unfit, wanted))}")
    needs = "; ".join(
        f"{item.name}: {', '.join(item.required)}" for item in wanted if task is None or task in item.tasks
    )
    raise DataError(
        f"{name}: format not recognised; the file has the columns {', '.join(present) or '(none)'}; "
        f"formats and the columns they need: {needs}; name yours with --columns, e.g. "
        '--columns \'{"question": "your_column"}\''
    )


def _tasks_of(unfit: list[str], wanted: list[formats.Format]) -> list[str]:
    return [task for item in wanted if f"is {item.name} data" in unfit[0] for task in item.tasks]


def _looks(item: formats.Format, row: Row, columns: dict[str, str]) -> bool:
    renamed = formats.rename(row, columns)
    if not all(renamed.get(field) is not None for field in item.required):
        return False
    try:
        return item.looks_like(renamed)
    except Exception:
        return False


def make_plan(sample: Sequence[Row], task: str, options: Options, name: str, split: str = "train") -> Plan:
    """Decide everything about a file from its first rows.

    Args:
        sample: the first readable rows (at most `SAMPLE_ROWS` are looked at).
        task: "sft", "rl" or "preference".
        options: the user's choices.
        name: the file's name, for messages and as the default data source.
        split: value of extra_info.split.

    Raises:
        DataError: unknown task, unusable options, no rows, or an unrecognised format.
    """
    if task not in TASKS:
        raise DataError(f"unknown task {task!r}; tasks: {', '.join(TASKS)}")
    template = options.prompt_template
    if template and task != "rl":
        raise DataError("--prompt-template applies to --task rl only")
    if template and "{question}" not in template and "{prompt}" not in template:
        raise DataError("--prompt-template must contain {question} or {prompt}, where the row's text goes")
    sample = sample[:SAMPLE_ROWS]
    if not sample:
        raise DataError(f"{name}: holds no readable rows")
    kind, columns, reason = detect(sample, task, options, name)
    notes = _notes(sample, task, columns)
    source, ability, extract = PurePath(name).name.split(".")[0], "general", False
    if task == "rl":
        style, note = _answer_style(sample, columns, options)
        notes += note
        extract = style != "plain"
        if style != "plain":
            ability = "math"
        source = {"hash": "openai/gsm8k", "boxed": "lighteval/MATH"}.get(style, source)
    return Plan(
        task=task,
        format=kind,
        columns=columns,
        reason=reason,
        options=options,
        data_source=options.data_source or source,
        ability=options.ability or ability,
        extract=extract,
        split=split,
        notes=tuple(notes),
    )


def _answer_style(sample: Sequence[Row], columns: dict[str, str], options: Options) -> tuple[str, list[str]]:
    """("hash" | "boxed" | "plain", notes): how the answers of this file carry the ground truth."""
    field = next(
        (columns[key] for key in ("solution", "answer", "response", "output") if key in columns), None
    )
    if field is None or options.answer_style == "plain":
        return ("boxed" if options.answer_style == "extract" else "plain"), []
    texts = [row[field] for row in sample if isinstance(row.get(field), str)]
    found = [text for text in texts if extract_answer(text) is not None]
    hashes = sum("####" in text for text in found)
    style = "hash" if hashes * 2 >= len(found) else "boxed"
    if options.answer_style == "extract":
        return style, []
    if "solution" in columns or "ground_truth" in columns or not found:
        return "plain", []
    if len(found) * 2 < len(texts):
        few = f"only {len(found)} of the first {len(texts)} answers hold '#### x' or \\boxed{{x}}"
        return "plain", [
            f"{few}: answers are taken whole as ground truth (--answer-style extract: the other way)"
        ]
    return style, []


def _notes(sample: Sequence[Row], task: str, columns: dict[str, str]) -> list[str]:
    notes = []
    used = set(columns.values())
    unused = [name for name in _columns(sample) if name not in used and name not in MEDIA]
    if unused and task != "rl":
        notes.append(f"columns that {task} rows have no place for, left out: {', '.join(unused)}")
    dropped: dict[str, None] = {}
    for row in sample:
        for field in ("messages", "conversations", "prompt", "chosen", "rejected"):
            value = row.get(columns.get(field, ""))
            for turn in value if isinstance(value, list) else ():
                if isinstance(turn, dict):
                    dropped.update(dict.fromkeys(key for key in turn if key not in KEPT_KEYS))
    if dropped:
        notes.append(f"message keys that no schema keeps, left out: {', '.join(dropped)}")
    return notes
