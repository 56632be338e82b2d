"""The rewards that users copy from: their docstring examples hold, gold answers score the maximum."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from common.reward_functions import load_reward
from common.reward_functions.loading import _import_file
from common.reward_functions.trial import Row, dry_run

ROOT = Path(__file__).parents[2]
ROWS = [Row("addition", str(n), {"index": n}) for n in range(20, 60)]


@pytest.mark.parametrize("method", ["grpo", "gspo"])
def test_examples_in_the_docstrings_hold(method: str) -> None:
    result = doctest.testmod(_import_file(ROOT / method / "reward_func.py"))
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize("method", ["grpo", "gspo"])
def test_gold_stands_out(method: str) -> None:
    report = dry_run(load_reward(str(ROOT / method / "reward_func.py"), "compute_score"), ROWS)
    assert report.problems == []
    assert report.means["gold"] == 1.0
    assert report.means["empty"] == 0.0


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        ("62", (1.0, 1.0)),
        (" 62\n", (1.0, 1.0)),
        ("The answer is 62", (1.0, 0.0)),
        ("62 is right, not 63", (0.0, 0.0)),
        ("62.0", (1.0, 1.0)),
        ("sixty-two", (0.0, 0.0)),
        ("-62", (0.0, 1.0)),
        ("", (0.0, 0.0)),
    ],
)
def test_grpo_measures_the_last_number_and_the_bare_answer(answer: str, parts: tuple[float, float]) -> None:
    reward = load_reward(str(ROOT / "grpo" / "reward_func.py"), "compute_score")
    result = reward(data_source="addition", solution_str=answer, ground_truth="62", extra_info={})
    assert (result["acc"], result["bare"]) == parts
    assert result["score"] == pytest.approx(0.8 * parts[0] + 0.2 * parts[1])
