"""The verdict table: every answer/gold pair is judged as annotated."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest

from common.reward_functions.hard_math import HardMath
from common.reward_functions.mathematics import math

TABLE = Path(__file__).with_name("verdicts.tsv")


def rows() -> list[dict[str, str]]:
    """The table; LaTeX is full of quotes and backslashes, so nothing is quoted."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_table_is_large_distinct_and_reasoned() -> None:
    table = rows()
    assert len({(row["answer"], row["gold"]) for row in table}) == len(table) >= 300
    assert {row["verdict"] for row in table} == {"right", "wrong"}
    assert all(row["reason"] for row in table)
    assert sum(row["verdict"] == "wrong" for row in table) >= 100
    assert sum(any("\u4e00" <= c <= "\u9fff" for c in row["answer"]) for row in table) >= 90


def test_every_verdict_is_as_annotated(hard_math: HardMath) -> None:
    wrong = []
    for row in rows():
        result = math(solution_str=row["answer"], ground_truth=row["gold"], time_limit=60.0)
        assert result["undecided"] == 0.0, row
        if bool(result["score"]) != (row["verdict"] == "right"):
            wrong.append((row["answer"], row["gold"], row["reason"], result["reason"]))
    assert wrong == []


def test_gold_answers_of_the_table_are_right_against_themselves(hard_math: HardMath) -> None:
    golds = sorted({row["gold"] for row in rows()})
    assert [
        g
        for g in golds
        if math(solution_str=f"\\boxed{{{g}}}", ground_truth=g, time_limit=60.0)["score"] != 1.0
    ] == []


@pytest.mark.slow
def test_math_verify_alone_differs_exactly_where_the_table_says() -> None:
    math_verify = pytest.importorskip("math_verify")
    logging.disable(logging.CRITICAL)
    try:
        unexplained = []
        for row in rows():
            alone = math_verify.verify(
                math_verify.parse(f"${row['gold']}$"), math_verify.parse(row["answer"])
            )
            if (alone != (row["verdict"] == "right")) != bool(row["math_verify_alone_differs"]):
                unexplained.append((row["answer"], row["gold"]))
    finally:
        logging.disable(logging.NOTSET)
    assert unexplained == []
