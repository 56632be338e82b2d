"""--compare: the same items answered by two or more models; what was fixed, what was broken, is it chance?"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data_utils.atomic import write_text
from common.evaluation import output, scores, statistics
from common.evaluation.batch import read_meta
from common.evaluation.children import child_output, evaluate, main_output, one_reward
from common.evaluation.options import is_result
from common.evaluation.record import Record
from common.evaluation.workbook import Book
from common.launcher.errors import UserError

OUTCOMES = {
    (False, True): "fixed",
    (True, False): "broken",
    (True, True): "both right",
    (False, False): "both wrong",
}


@dataclass
class Side:
    """One model's results by item key; of several equal rows of the data the first counts."""

    name: str
    record: Record
    meta: dict[str, Any]
    right: dict[str, bool]
    score: dict[str, float]
    line: dict[str, tuple[int, int]]  # (item, sample) of its first answer


@dataclass(frozen=True)
class Paired:
    """Side B against side A on the items both have. `difference`: of mean scores, with its interval."""

    a: str
    b: str
    items: int
    fixed: int
    broken: int
    both_right: int
    both_wrong: int
    p: float
    difference: float
    low: float
    high: float


def read_side(name: str, path: Path) -> Side:
    """The results behind *path*.

    Raises:
        UserError: no record, or one without scores.
    """
    record = Record(output.record_path(path)).scan()
    if not record.places:
        raise UserError(f"{name}: {record.path} holds no results")
    by_item: dict[int, list[dict[str, Any]]] = {}
    keys: dict[str, tuple[int, int]] = {}
    for row in record.rows():
        by_item.setdefault(row["item"], []).append({k: row.get(k) for k in ("score", "right", "key")})
        keys.setdefault(row["key"], (row["item"], row["sample"]))
    if all(row["score"] is None for rows in by_item.values() for row in rows):
        raise UserError(f"{name} has no scores: give it some with --rescore --reward ...")
    # With several samples an item is right when more than half of them are.
    right = {
        key: 2 * sum(bool(r["right"]) for r in by_item[i]) > len(by_item[i]) for key, (i, _) in keys.items()
    }
    score = {
        key: sum(float(r["score"] or 0.0) for r in by_item[i]) / len(by_item[i])
        for key, (i, _) in keys.items()
    }
    return Side(name, record, read_meta(path), right, score, keys)


def pair(a: Side, b: Side) -> Paired:
    """Compare two sides item by item.

    Raises:
        UserError: they share no item, or were scored by different rewards.
    """
    shared = [key for key in a.right if key in b.right]
    if not shared:
        raise UserError(f"{a.name} and {b.name} share no item: they were made from different data")
    mine, other = a.meta.get("reward key"), b.meta.get("reward key")
    if mine != other:
        raise UserError(
            f"{a.name} was scored by {a.meta.get('reward')}, {b.name} by {b.meta.get('reward')}: "
            "--rescore one of them"
        )
    kinds = [OUTCOMES[a.right[key], b.right[key]] for key in shared]
    changes = [b.score[key] - a.score[key] for key in shared]
    low, high = statistics.mean_interval(changes)
    fixed, broken = kinds.count("fixed"), kinds.count("broken")
    return Paired(
        a.name,
        b.name,
        len(shared),
        fixed,
        broken,
        kinds.count("both right"),
        kinds.count("both wrong"),
        statistics.mcnemar(fixed, broken),
        sum(changes) / len(changes),
        low,
        high,
    )


def run(options: Namespace) -> int:
    """Evaluate what is a model, read what is a result file, compare all with the first."""
    main = main_output(options, "compare")
    models = [name for name in options.compare if not is_result(name)]
    changes = one_reward(options, models) if models else {}
    complete = True
    sides = []
    try:
        for name in options.compare:
            path = Path(name)
            if not is_result(name):
                path = child_output(main, name)
                complete &= evaluate(options, name, path, **changes)
            sides.append(read_side(name if not is_result(name) else Path(name).stem, path))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from there", file=sys.stderr)
        return 130
    pairs = [pair(sides[0], side) for side in sides[1:]]
    if main.suffix == ".xlsx":
        _workbook(main, sides, pairs)
    else:
        write_text(main, json.dumps([vars(entry) for entry in pairs], indent=1))
    for entry in pairs:
        print(
            f"{entry.b} against {entry.a} on {entry.items} items: {entry.fixed} fixed, {entry.broken} broken, "
            f"{entry.both_right} both right, {entry.both_wrong} both wrong; McNemar p = {entry.p:.4g}; "
            f"score {entry.difference:+.4f} [{entry.low:+.4f}, {entry.high:+.4f}]"
        )
    print(f"results  {main}")
    return 0 if complete else 1


def _workbook(path: Path, sides: list[Side], pairs: list[Paired]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    book = Book(path)
    try:
        _summary(book, sides, pairs)
        _items(book, sides)
        book.close()
    except BaseException:
        book.discard()
        raise


def _summary(book: Book, sides: list[Side], pairs: list[Paired]) -> None:
    sheet = book.sheet("Summary", widths=(36, 14, 12, 12, 12, 12, 12, 14, 12, 12))
    sheet.add(["test.sh comparison"], book.title)
    sheet.add([])
    sheet.add(["model", "figure", "value", "95% low", "95% high"], book.bold)
    for side in sides:
        found = scores.collect(side.record.rows(), *_size(side))
        for figure in scores.figures(found):
            sheet.add([side.name, figure.name, figure.value, figure.low, figure.high])
    sheet.add([])
    titles = ["against " + sides[0].name, "items", "fixed", "broken", "both right", "both wrong"]
    sheet.add([*titles, "McNemar p", "score change", "95% low", "95% high"], book.bold)
    for entry in pairs:
        counts = [entry.items, entry.fixed, entry.broken, entry.both_right, entry.both_wrong]
        sheet.add([entry.b, *counts, entry.p, entry.difference, entry.low, entry.high])
    sheet.add([])
    for side in sides:
        sheet.add([f"{side.name}: results", str(side.record.path)])
        sheet.add([f"{side.name}: command", side.meta.get("command")])
    sheet.sheet.activate()


def _size(side: Side) -> tuple[int, int]:
    places = side.record.places
    known = side.meta.get("items"), side.meta.get("n")
    return (known[0] or len({i for i, _ in places}), known[1] or 1 + max(s for _, s in places))


def _items(book: Book, sides: list[Side]) -> None:
    """Every shared item in the first side's order: truth, and of each side outcome, score and first answer."""
    titles = ["prompt", "ground_truth"]
    for side in sides:
        titles += [f"{side.name}: score", f"{side.name}: output"]
    titles[2:2] = [side.name if len(sides) > 2 else "outcome" for side in sides[1:]]
    widths = [50, 18, *[14] * (len(sides) - 1), *[10, 50] * len(sides)]
    sheet = book.sheet("Compare", titles, widths)
    for key, (item, _) in sides[0].line.items():
        if not all(key in side.right for side in sides):
            continue
        rows = [_first(side, key) for side in sides]
        outcomes = [OUTCOMES[sides[0].right[key], side.right[key]] for side in sides[1:]]
        values = [rows[0]["messages"], rows[0]["gts"], *outcomes]
        for side, row in zip(sides, rows, strict=True):
            values += [side.score[key], row["output"]]
        style = book.red if "broken" in outcomes else None
        sheet.add(values, style, f"{sides[0].record.path.name} item {item}")
    sheet.finish()


def _first(side: Side, key: str) -> dict[str, Any]:
    return next(side.record.rows([side.line[key]]))
