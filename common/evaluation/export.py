"""The view that people open, made from the record: Excel, CSV or JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.data_utils.atomic import temp_beside
from common.evaluation import scores
from common.evaluation.cells import csv_text, text_of
from common.evaluation.record import Record, json_line
from common.evaluation.scores import Collected, Figure
from common.evaluation.workbook import Book, Sheet
from common.launcher.errors import UserError

FIXED = ("item", "sample", "prompt", "output", "ground_truth", "score", "right", "answer")
LAST = ("tokens", "finish", "truncated", "error", "cut")
SAMPLE_WIDTHS = {"prompt": 50, "output": 60, "ground_truth": 20, "error": 30}
MOST_ERRORS = 10_000


def columns_of(record: Record, probe: int = 200) -> tuple[list[str], list[str]]:
    """(parts of the reward, columns of the data), from the first rows; a later row adds none."""
    parts: dict[str, None] = {}
    data: dict[str, None] = {}
    for number, row in enumerate(record.rows()):
        parts.update(dict.fromkeys(row.get("parts") or {}))
        data.update(dict.fromkeys(row.get("row") or {}))
        if number >= probe:
            break
    return list(parts), list(data)


def cells(row: dict[str, Any], parts: list[str], data: list[str]) -> list[Any]:
    """One record line as the cells of the Results table, without `cut`."""
    values = [row.get(name) for name in ("item", "sample")]
    values += [row.get("messages"), row.get("output"), row.get("gts"), row.get("score")]
    values += [row.get("right"), row.get("answer")]
    own, given = row.get("parts") or {}, row.get("row") or {}
    values += [own.get(name) for name in parts]
    values += [row.get(name) for name in ("tokens", "finish_reason", "truncated")]
    values.append(row.get("error") or row.get("reward_error"))
    return values + [given.get(name) for name in data]


def header(parts: list[str], data: list[str]) -> list[str]:
    """Titles of the Results table; a name that stands twice tells where it is from."""
    taken = {*FIXED, *LAST}
    titles = [*FIXED, *(f"reward: {name}" if name in taken else name for name in parts)]
    taken |= set(parts)
    return [*titles, *LAST[:-1], *(f"data: {name}" if name in taken else name for name in data), LAST[-1]]


def write(path: Path, record: Record, found: Collected, meta: dict[str, Any]) -> None:
    """Write *path* by its ending; a `.jsonl` is the record itself.

    Raises:
        UserError: it cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".xlsx":
        write_xlsx(path, record, found, meta)
    elif suffix == ".csv":
        _write_csv(path, record)
    elif suffix == ".json":
        _write_json(path, record, found, meta)


def write_xlsx(path: Path, record: Record, found: Collected, meta: dict[str, Any]) -> None:
    """Summary, Results, Groups, Scores, Errors."""
    book = Book(path)
    try:
        summary_sheet(book, found, meta)
        _results(book, record)
        _groups(book, found)
        _scores(book, found)
        _errors(book, record, found)
        book.close()
    except BaseException:
        book.discard()
        raise


def summary_lines(meta: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What was run, one fact each."""
    for name, value in meta.items():
        if name in ("figures", "settings", "reward key"):
            continue
        if isinstance(value, dict):
            for key, inner in value.items():
                yield f"{name}: {key}", inner
        elif value not in (None, ""):
            yield name, value


def summary_sheet(book: Book, found: Collected, meta: dict[str, Any]) -> None:
    """Scores with intervals first, then everything that led to them."""
    sheet = book.sheet("Summary", widths=(28, 14, 14, 14, 60))
    sheet.add(["test.sh results"], book.title)
    sheet.add([])
    sheet.add(["score", "value", "95% low", "95% high", "note"], book.bold)
    for figure in scores.figures(found):
        _figure(book, sheet, figure)
    sheet.add([])
    sheet.add(["all samples", "value"], book.bold)
    for figure in [*scores.shares(found), *scores.part_means(found)]:
        _figure(book, sheet, figure)
    sheet.add([])
    sheet.add(["run", "value"], book.bold)
    sheet.add(["items", found.total_items])
    sheet.add(["samples per item", found.n])
    for name, value in summary_lines(meta):
        sheet.add([name, value])
    sheet.sheet.activate()


def _figure(book: Book, sheet: Sheet, figure: Figure) -> None:
    row = sheet.row
    sheet.add([figure.name, None, None, None, figure.note])
    for column, value in enumerate((figure.value, figure.low, figure.high), 1):
        if value is not None:
            sheet.sheet.write_number(row, column, value, book.share)


def _results(book: Book, record: Record) -> None:
    parts, data = columns_of(record)
    titles = header(parts, data)
    sheet = book.sheet("Results", titles, [SAMPLE_WIDTHS.get(title, 12) for title in titles])
    cut_column = len(titles) - 1
    for number, row in enumerate(record.rows(), 1):
        style = book.red if row.get("error") or row.get("reward_error") else None
        values = cells(row, parts, data)
        if sheet.add(values, style, f"{record.path.name} line {number}"):
            sheet.sheet.write_boolean(sheet.row - 1, cut_column, True)
    sheet.finish(colour=FIXED.index("score"))


def _groups(book: Book, found: Collected) -> None:
    groups = scores.by_group(found)
    if not groups:
        return
    names = [figure.name for figure in groups[0][3]]
    titles = [
        "column",
        "group",
        "items",
        *(t for name in names for t in (name, f"{name} low", f"{name} high")),
    ]
    sheet = book.sheet("Groups", titles, [16, 30, 10, *[12] * (len(titles) - 3)])
    for column, group, count, figures in groups:
        known = {figure.name: figure for figure in figures}
        values: list[Any] = [column, group, count]
        for name in names:
            figure = known.get(name)
            values += [figure.value, figure.low, figure.high] if figure else [None, None, None]
        sheet.add(values)
    sheet.finish(colour=3)


def _scores(book: Book, found: Collected) -> None:
    bars = scores.histogram(found)
    if not bars:
        return
    sheet = book.sheet("Scores", ("score", "samples"), (20, 12))
    for name, count in bars:
        sheet.add([name, count])
    book.chart(sheet, "column", (0, (1,)), "Samples by score", "D2")


def _errors(book: Book, record: Record, found: Collected) -> None:
    counts = scores.error_counts(found)
    if not counts:
        return
    sheet = book.sheet("Errors", ("kind", "message", "samples", "item", "sample"), (12, 80, 10, 10, 10))
    for kind, message, count in counts:
        sheet.add([kind, message, count])
    keys = [
        (item, light.sample)
        for item, samples in sorted(found.samples.items())
        for light in samples
        if light.error or light.reward_error
    ]
    for row in record.rows(keys[:MOST_ERRORS]):
        kind = "generation" if row.get("error") else "reward"
        sheet.add([kind, row.get("error") or row.get("reward_error"), None, row["item"], row["sample"]])
    if len(keys) > MOST_ERRORS:
        sheet.add(["", f"{len(keys) - MOST_ERRORS} more in the Results sheet"])
    sheet.finish()


def _write_csv(path: Path, record: Record) -> None:
    parts, data = columns_of(record)
    with _whole(path) as handle:
        writer = csv.writer(handle)
        writer.writerow([csv_text(title) for title in header(parts, data)[:-1]])
        for row in record.rows():
            writer.writerow(
                [
                    value if isinstance(value, int | float) else csv_text(text_of(value))
                    for value in cells(row, parts, data)
                ]
            )


def _write_json(path: Path, record: Record, found: Collected, meta: dict[str, Any]) -> None:
    head = {**meta, "figures": figure_dicts(found)}
    with _whole(path) as handle:
        handle.write('{"run": ' + json.dumps(head, default=str) + ',\n"results": [')
        for number, row in enumerate(record.rows()):
            handle.write((",\n" if number else "\n") + json_line(row).decode().rstrip("\n"))
        handle.write("\n]}\n")


def figure_dicts(found: Collected) -> dict[str, dict[str, Any]]:
    """All figures by name, for the run file and JSON."""
    every = [*scores.figures(found), *scores.shares(found), *scores.part_means(found)]
    return {figure.name: {"value": figure.value, "low": figure.low, "high": figure.high} for figure in every}


class _whole:  # noqa: N801 (used like a function)
    """A text file that appears when it is complete.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, temp_beside(path)

    def __enter__(self) -> Any:
        try:
            self.handle = self.temporary.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror or error}") from None
        return self.handle

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.handle.close()
        if kind is None:
            self.temporary.replace(self.path)
        self.temporary.unlink(missing_ok=True)
