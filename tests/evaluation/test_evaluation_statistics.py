"""Figures against tables computed by hand."""

from __future__ import annotations

import pytest

from common.evaluation import scores
from common.evaluation.statistics import (
    maj_at_k,
    majority,
    mcnemar,
    mean_interval,
    pass_at_k,
    powers,
    share_interval,
    wilson,
)


@pytest.mark.parametrize(
    ("n", "c", "k", "value"),
    [
        (4, 1, 1, 0.25),
        (4, 1, 2, 0.5),  # 1 - C(3,2)/C(4,2) = 1 - 3/6
        (4, 1, 4, 1.0),  # one of four drawn without putting back: certain (a bootstrap says 0.684)
        (4, 0, 4, 0.0),
        (5, 2, 2, 0.7),  # 1 - C(3,2)/C(5,2) = 1 - 3/10
        (10, 3, 5, 1 - 21 / 252),  # C(7,5) = 21, C(10,5) = 252
        (8, 8, 1, 1.0),
    ],
)
def test_pass_at_k(n: int, c: int, k: int, value: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(value)


def test_pass_at_k_needs_k_samples() -> None:
    with pytest.raises(ValueError, match="pass@4 needs 4 samples, there are 2"):
        pass_at_k(2, 1, 4)


@pytest.mark.parametrize(
    ("answers", "right", "chosen", "value"),
    [
        (["7", "7", "8"], [True, True, False], "7", 1.0),
        (["8", "8", "7"], [False, False, True], "8", 0.0),
        (["7", "8"], [True, False], None, 0.0),  # a tie is no majority
        ([None, None, "7"], [False, False, True], "7", 1.0),  # what was not found has no vote
        ([None, None], [False, False], None, 0.0),
        (["7", "7", "8", "8", "9"], [True, True, False, False, False], None, 0.0),
    ],
)
def test_majority(answers: list, right: list, chosen: str | None, value: float) -> None:
    assert majority(answers) == chosen
    assert maj_at_k(answers, right) == value


def test_intervals() -> None:
    # Wilson 1927 for 8 of 10: centre (0.8 + 3.8415/20)/(1 + 0.38415), half width by the same formula.
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-4)
    # Values 1, 2, 3, 4: mean 2.5, standard error sqrt(5/3)/2 = 0.6455, times 1.96.
    assert mean_interval([1, 2, 3, 4]) == pytest.approx((2.5 - 1.2652, 2.5 + 1.2652), abs=5e-4)
    assert share_interval([1.0, 0.0, 1.0, 1.0]) == wilson(3, 4)
    low, high = share_interval([0.5, 1.0, 1.0, 1.0])
    assert high == 1.0 and 0.5 < low < 0.875


@pytest.mark.parametrize(
    ("fixed", "broken", "p"),
    [
        (0, 0, 1.0),
        (5, 0, 0.0625),  # 2 / 2^5
        (8, 2, 0.109375),  # 2 (1 + 10 + 45) / 1024
        (2, 8, 0.109375),
        (3, 3, 1.0),
        (15, 5, 0.041389),  # 2 (1 + 20 + 190 + 1140 + 4845 + 15504) / 2^20
    ],
)
def test_mcnemar(fixed: int, broken: int, p: float) -> None:
    assert mcnemar(fixed, broken) == pytest.approx(p, abs=1e-6)


def test_powers() -> None:
    assert [powers(n) for n in (1, 2, 5, 8)] == [[1], [1, 2], [1, 2, 4, 5], [1, 2, 4, 8]]


def row(item: int, sample: int, right: bool, answer: str | None, **more: object) -> dict:
    base = {
        "item": item,
        "sample": sample,
        "score": float(right),
        "right": right,
        "answer": answer,
        "tokens": 4,
    }
    return {**base, "groups": {"level": ["a" if item < 2 else "b"]}, **more}


def test_figures_of_a_small_table() -> None:
    rows = [
        *[row(0, k, right, "7" if right else "1") for k, right in enumerate([True, True, False, False])],
        *[row(1, k, True, "3") for k in range(4)],
        *[row(2, k, False, None) for k in range(4)],
        row(3, 0, True, "5"),
        row(3, 1, False, None, error="out of memory"),  # two more samples of item 3 are missing
    ]
    found = scores.collect(rows, total_items=5, n=4)  # item 4 was never answered: it counts
    values = {figure.name: figure.value for figure in scores.figures(found)}
    assert values["right avg@4"] == pytest.approx((0.5 + 1 + 0 + 0.25 + 0) / 5)
    assert values["pass@2"] == pytest.approx((1 - 1 / 6 + 1 + 0 + 0.5 + 0) / 5)
    assert values["pass@4"] == pytest.approx(3 / 5)
    assert values["maj@4"] == pytest.approx(2 / 5)  # item 0 is a tie, item 3 has one vote
    assert values["all 4 right"] == pytest.approx(1 / 5)
    shares = {figure.name: figure.value for figure in scores.shares(found)}
    assert shares["errors"] == 1 / 20
    assert shares["not done"] == pytest.approx(6 / 20)
    groups = {(column, group): figures for column, group, _, figures in scores.by_group(found)}
    assert groups["level", "a"][1].value == pytest.approx(0.75)
    assert scores.error_counts(found) == [("generation", "out of memory", 1)]
    assert scores.histogram(found) == [("0", 7), ("1", 7)]
