"""Try a reward on a run's own rows before the run: gold answers against junk."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.reward_functions import registry
from common.reward_functions.calling import BoundReward, as_parts
from common.reward_functions.errors import RewardError

KINDS = ("gold", "empty", "shuffled gold", "random text")
BINS = 10
# Share of rows in which gold may fail to beat junk (equal answers, a gold the reward cannot read).
TOLERATED = 0.5
_JUNK = (
    "river the of seven blue answer maybe because 90817 garden 98765.4321 not table seems 然后 因为 and we"
)
_GOLD_FORMS: dict[str, Callable[[str], str]] = {
    "the ground truth alone": lambda gold: gold,
    r"\boxed{gold}": lambda gold: f"The answer is \\boxed{{{gold}}}.",
    "#### gold": lambda gold: f"The answer follows.\n#### {gold}",
    "<answer>gold</answer>": lambda gold: f"<think>\nWe work it out.\n</think>\n<answer>{gold}</answer>",
    r"<think> and \boxed{gold}": lambda gold: f"<think>\nWe work it out.\n</think>\n\\boxed{{{gold}}}",
    "The answer is gold.": lambda gold: f"The answer is {gold}.",
    "Answer: gold": lambda gold: f"Answer: {gold}",
}


@dataclass(frozen=True)
class Row:
    """One sample as verl would hand it to a reward."""

    data_source: str
    ground_truth: Any
    extra_info: Mapping[str, Any]


@dataclass
class Report:
    """What a dry run found; `problems` is empty when the reward can tell gold answers from junk."""

    reward: str
    rows: int
    gold_form: str
    means: dict[str, float]
    histogram: dict[str, list[int]]
    low: float
    high: float
    seconds_per_call: float
    slowest_call: float
    gold_not_above_junk: float
    keys: list[str]
    errors: int
    first_error: str
    problems: list[str] = field(default_factory=list)


def read_rows(path: Path, limit: int) -> list[Row]:
    """The first `limit` rows of a file in verl's schema (parquet, JSON or JSONL).

    Raises:
        RewardError: no such file, no rows, or a row without data_source or reward_model.ground_truth.
    """
    if not path.exists():
        raise RewardError(f"data file {path} does not exist")
    rows = []
    for number, record in enumerate(_records(path, limit), 1):
        model = record.get("reward_model")
        if not isinstance(model, Mapping) or "ground_truth" not in model:
            raise RewardError(f"{path} row {number} has no reward_model.ground_truth")
        if "data_source" not in record:
            raise RewardError(f"{path} row {number} has no data_source")
        rows.append(
            Row(str(record["data_source"]), model["ground_truth"], dict(record.get("extra_info") or {}))
        )
    if not rows:
        raise RewardError(f"{path} has no rows")
    return rows


def _records(path: Path, limit: int) -> Iterable[Mapping[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            columns = [
                c for c in ("data_source", "reward_model", "extra_info") if c in file.schema_arrow.names
            ]
            read: list[Mapping[str, Any]] = []
            for batch in file.iter_batches(batch_size=min(limit, 1024), columns=columns):
                read += batch.to_pylist()
                if len(read) >= limit:
                    break
        return read[:limit]
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".json":
            return list(json.loads(text))[:limit]
        return [json.loads(line) for line in text.splitlines() if line.strip()][:limit]
    except json.JSONDecodeError as error:
        raise RewardError(f"{path} is not valid JSON at line {error.lineno}: {error.msg}") from None


def call(reward: BoundReward, answer: str, row: Row) -> dict[str, Any]:
    """Score one answer for one row, async functions included."""
    result = reward(
        data_source=row.data_source,
        solution_str=answer,
        ground_truth=row.ground_truth,
        extra_info=dict(row.extra_info),
    )
    return as_parts(asyncio.run(_wait(result)) if inspect.isawaitable(result) else result, reward.label)


async def _wait(result: Any) -> Any:
    return await result


class _Scores:
    """Scores, times and errors of many calls."""

    def __init__(self, reward: BoundReward) -> None:
        self.reward = reward
        self.seconds: list[float] = []
        self.errors: list[str] = []
        self.keys: list[str] = []
        self.uneven: str | None = None

    def one(self, answer: str, row: Row) -> float | None:
        begin = time.perf_counter()
        try:
            parts = call(self.reward, answer, row)
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
            return None
        self.seconds.append(time.perf_counter() - begin)
        if not self.keys:
            self.keys = list(parts)
        elif set(self.keys) != set(parts):
            self.uneven = ", ".join(sorted(set(self.keys) ^ set(parts)))
        return float(parts["score"])

    def many(self, answers: list[str], rows: list[Row]) -> list[float | None]:
        return [self.one(answer, row) for answer, row in zip(answers, rows, strict=True)]


def gold_answers(reward: BoundReward, rows: list[Row], scores: _Scores) -> tuple[str, list[str]]:
    """(form, answers): the registered reward's own gold answers, else the common form that scores best."""
    if reward.label.startswith("common:"):
        spec = registry.get(reward.label)
        written = [spec.gold(row.ground_truth, {**row.extra_info, **reward.kwargs}) for row in rows]
        if all(text is not None for text in written):
            return "as the reward defines it", [str(text) for text in written]
    reference = [row.extra_info.get("solution") or row.extra_info.get("answer") for row in rows]
    forms = {name: [form(_text(row.ground_truth)) for row in rows] for name, form in _GOLD_FORMS.items()}
    if all(isinstance(text, str) for text in reference):
        forms["extra_info's own answer"] = [str(text) for text in reference]
    probe = rows[:20]

    def mean(answers: list[str]) -> float:
        reached = [s for s in scores.many(answers[: len(probe)], probe) if s is not None]
        return statistics.fmean(reached) if reached else float("-inf")

    best = max(forms, key=lambda name: mean(forms[name]))
    return best, forms[best]


def _text(truth: Any) -> str:
    if isinstance(truth, str):
        return truth
    if isinstance(truth, list | tuple) and truth:
        return _text(truth[0])
    return json.dumps(truth, ensure_ascii=False) if isinstance(truth, dict) else str(truth)


def dry_run(reward: BoundReward, rows: list[Row], seed: int = 0) -> Report:
    """Score gold, empty, shuffled gold and random answers of every row and judge whether gold stands out."""
    chance = random.Random(seed)
    scores = _Scores(reward)
    form, gold = gold_answers(reward, rows, scores)
    scores.errors.clear()
    scores.seconds.clear()
    answers = {
        "gold": gold,
        "empty": [""] * len(rows),
        "shuffled gold": _derange(gold, rows, chance),
        "random text": [" ".join(chance.choices(_JUNK.split(), k=chance.randint(3, 40))) for _ in rows],
    }
    table = {kind: scores.many(answers[kind], rows) for kind in KINDS}
    flat = [s for column in table.values() for s in column if s is not None]
    low, high = (min(flat), max(flat)) if flat else (0.0, 0.0)
    not_above = [
        g is None or any(other is not None and g <= other for other in others)
        for g, *others in zip(*(table[kind] for kind in KINDS), strict=True)
    ]
    report = Report(
        reward=reward.label,
        rows=len(rows),
        gold_form=form,
        means={kind: _mean(table[kind]) for kind in KINDS},
        histogram={kind: _histogram(table[kind], low, high) for kind in KINDS},
        low=low,
        high=high,
        seconds_per_call=statistics.fmean(scores.seconds) if scores.seconds else 0.0,
        slowest_call=max(scores.seconds, default=0.0),
        gold_not_above_junk=sum(not_above) / len(rows),
        keys=scores.keys,
        errors=len(scores.errors),
        first_error=scores.errors[0] if scores.errors else "",
    )
    report.problems = _problems(report, scores.uneven)
    return report


def _problems(report: Report, uneven: str | None) -> list[str]:
    problems = []
    if report.errors:
        problems.append(
            f"{report.errors} of {len(KINDS) * report.rows} calls raised; first: {report.first_error}"
        )
    junk = max(report.means[kind] for kind in KINDS if kind != "gold")
    if report.high == report.low:
        problems.append(f"every answer scored {report.high:g}: there is no signal to learn from")
    elif report.means["gold"] <= junk:
        problems.append(
            f"gold answers average {report.means['gold']:.3g}, junk {junk:.3g}: "
            "the reward cannot tell them apart"
        )
    elif report.gold_not_above_junk > TOLERATED:
        problems.append(
            f"in {report.gold_not_above_junk:.0%} of the rows the gold answer does not beat junk "
            f"(best form tried: {report.gold_form})"
        )
    if uneven:
        problems.append(
            f"the result's keys differ between samples ({uneven}); return the same keys every time"
        )
    return problems


def _mean(column: list[float | None]) -> float:
    known = [score for score in column if score is not None]
    return statistics.fmean(known) if known else float("nan")


def _histogram(column: list[float | None], low: float, high: float) -> list[int]:
    counts = [0] * BINS
    for score in column:
        if score is not None:
            counts[min(BINS - 1, int((score - low) / (high - low) * BINS)) if high > low else 0] += 1
    return counts


def _derange(gold: list[str], rows: list[Row], chance: random.Random) -> list[str]:
    """Every row gets the gold answer of another row, one with another answer where there is one."""
    order = list(range(len(gold)))
    chance.shuffle(order)
    shuffled = []
    for index in range(len(gold)):
        others = (order[(index + step) % len(order)] for step in range(len(order)))
        shuffled.append(next((gold[o] for o in others if gold[o] != gold[index]), "no other answer exists"))
    return shuffled
