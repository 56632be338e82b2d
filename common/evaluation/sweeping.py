"""--sweep: every step that a run kept, scored on the same data: the score's curve over training."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from common.checkpoints import CheckpointError, default_output, resolve
from common.checkpoints.place import steps_of
from common.data_utils.atomic import write_text
from common.evaluation import output, scores
from common.evaluation.batch import read_meta
from common.evaluation.children import child_output, evaluate, main_output, one_reward
from common.evaluation.record import Record
from common.evaluation.scores import Figure
from common.evaluation.workbook import Book
from common.launcher.errors import UserError


def run(options: Namespace) -> int:
    """Evaluate the model that the run started from (step 0) and every kept step.

    Raises:
        UserError: no run, or it kept no checkpoint.
    """
    checkpoint = resolve(options.sweep, output=options.output_dir or default_output())
    if checkpoint.root is None:
        raise UserError(f"--sweep {options.sweep} is no run with checkpoints: give its name or folder")
    main = main_output(options, "sweep")
    changes = one_reward(options, [options.sweep])
    start = str(checkpoint.record().get("model_dir") or "")
    points: list[tuple[int, list[Figure]]] = []
    complete = True
    try:
        for step in [*([0] if _usable(start) else []), *steps_of(checkpoint.root)]:
            target = child_output(main, f"step-{step}")
            model = start if step == 0 else str(checkpoint.root)
            complete &= evaluate(options, model, target, step or None, **changes)
            points.append((step, _figures(target)))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from there", file=sys.stderr)
        return 130
    if main.suffix == ".xlsx":
        _workbook(main, checkpoint.run, points)
    else:
        values = {step: {figure.name: figure.value for figure in figures} for step, figures in points}
        write_text(main, json.dumps(values, indent=1))
    for step, figures in points:
        print(f"step {step:>6}  " + "  ".join(f"{figure.name} {figure.value:.4f}" for figure in figures[:2]))
    print(f"results  {main}")
    return 0 if complete else 1


def _usable(model: str) -> bool:
    try:
        return bool(model) and bool(resolve(model))
    except CheckpointError:
        return False


def _figures(path: Path) -> list[Figure]:
    record = Record(output.record_path(path)).scan()
    meta = read_meta(path)
    figures = scores.figures(scores.collect(record.rows(), meta["items"], meta["n"]))
    if not figures:
        raise UserError(f"{path} has no scores: --sweep needs --reward, or data with ground truths")
    return figures


def _workbook(path: Path, run_name: str, points: list[tuple[int, list[Figure]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    book = Book(path)
    try:
        names = [figure.name for figure in points[0][1]]
        titles = ["step", *(title for name in names for title in (name, f"{name} low", f"{name} high"))]
        sheet = book.sheet("Sweep", titles, [10, *[14] * (len(titles) - 1)])
        for step, figures in points:
            values: list[Any] = [step]
            for figure in figures:
                values += [figure.value, figure.low, figure.high]
            sheet.add(values)
        book.chart(sheet, "line", (0, (1, 4)), f"{run_name}: score by step", "B" + str(len(points) + 4))
        sheet.finish()
        book.close()
    except BaseException:
        book.discard()
        raise
