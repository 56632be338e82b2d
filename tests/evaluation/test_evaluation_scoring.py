"""The reward is called as in training; what it raises or never returns stays with its sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.evaluation.items import Item
from common.evaluation.scoring import Scorer, choose_reward, extracted
from common.launcher.errors import UserError


def item(index: int, truth: Any = None, source: str = "d") -> Item:
    return Item(
        index,
        [{"role": "user", "content": "q"}],
        source,
        str(index) if truth is None else truth,
        {"index": index},
    )


def row(index: int, output: str = "abc", error: str = "") -> dict[str, Any]:
    return {"item": index, "sample": 0, "output": output, "error": error}


def score(reward: Any, path: Path, count: int = 6, timeout: float = 30) -> Scorer:
    scorer = Scorer(reward, path, 0.5, timeout)
    for index in range(count):
        scorer.add(item(index), row(index))
    scorer.finish()
    return scorer


def choose(name: str, **kwargs: Any) -> Any:
    return choose_reward(name, kwargs, {}, [item(0)])[0]


def test_file_function_knobs_and_parts(reward: Path, tmp_path: Path) -> None:
    found = score(choose(str(reward), scale=2.0), tmp_path / "s.jsonl").scores
    assert found[3, 0] == {
        "score": 0.06,
        "right": True,  # by `acc`, not by the score
        "answer": None,  # the truth is a number, the output holds none
        "parts": {"acc": 1.0, "long": False},
        "reward_error": "",
    }
    assert found[2, 0]["right"] is False


def test_async_function(reward: Path, tmp_path: Path) -> None:
    found = score(choose(f"{reward}:slow"), tmp_path / "s.jsonl").scores
    assert [found[i, 0]["score"] for i in range(6)] == [0, 0, 0, 1, 0, 0]


def test_errors_and_endless_calls_count_as_zero_and_stop_nobody(reward: Path, tmp_path: Path) -> None:
    broken = score(choose(f"{reward}:broken"), tmp_path / "a.jsonl")
    assert broken.scores[5, 0]["reward_error"] == "ValueError: no five"
    assert [broken.scores[i, 0]["score"] for i in range(6)] == [1, 1, 1, 1, 1, 0]
    stuck = score(choose(f"{reward}:stuck"), tmp_path / "b.jsonl", timeout=0.3)
    assert "no score within 0.3 s" in stuck.scores[2, 0]["reward_error"]
    assert [stuck.scores[i, 0]["score"] for i in range(6)] == [1, 1, 0, 1, 1, 1]


def test_scores_survive_a_kill_and_are_dropped_for_another_reward(reward: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    score(choose(str(reward)), path, count=3)
    with path.open("ab") as handle:
        handle.write(b'{"item": 9, "sam')
    again = Scorer(choose(str(reward)), path, 0.5, 30)
    assert sorted(again.scores) == [(0, 0), (1, 0), (2, 0)]
    again.finish()
    assert path.read_bytes().endswith(b"}\n")
    other = Scorer(choose(str(reward), scale=3), path, 0.5, 30)
    assert other.scores == {}
    other.finish()


def test_failed_scores_are_tried_again(reward: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    score(choose(f"{reward}:broken"), path)
    again = Scorer(choose(f"{reward}:broken"), path, 0.5, 30)
    assert sorted(again.scores) == [(i, 0) for i in range(5)]
    again.finish()


def test_automatic_choice(reward: Path) -> None:
    knobs = {
        "REWARD_FUNC_PATH": str(reward),
        "REWARD_FUNC_NAME": "compute_score",
        "REWARD_KWARGS": '{"scale": 4}',
    }
    chosen, who = choose_reward("", {}, {"knobs": knobs}, [item(0)])
    assert chosen is not None and (dict(chosen.kwargs), who) == ({"scale": 4}, "the run")
    for items, label in (
        ([item(0, "12"), item(1, "1/2")], "common:math"),
        ([item(0, "12", "openai/gsm8k")], "common:gsm8k"),
    ):
        chosen, _ = choose_reward("", {}, {}, items)
        assert chosen is not None and chosen.label == label
    assert choose_reward("", {}, {}, [item(0, "A long story.")])[0] is None
    nothing = Item(0, [], "d", None)
    assert "no ground truth" in choose_reward("", {}, {}, [nothing])[1]
    assert choose_reward("none", {}, {"knobs": knobs}, [item(0)])[0] is None


@pytest.mark.parametrize(
    ("name", "say"),
    [
        ("common:maths", "maths"),
        ("no/such.py", "reward file no/such.py does not exist"),
        ("{reward}:nope", "has no function 'nope'"),
        ("judge:no.yaml", "no.yaml"),
    ],
)
def test_wrong_rewards_get_one_line(reward: Path, name: str, say: str) -> None:
    with pytest.raises(UserError, match=say):
        choose(name.format(reward=reward))


@pytest.mark.parametrize(
    ("parts", "output", "truth", "answer"),
    [
        ({"pred": "0.50"}, "x", "1/2", "1/2"),
        ({"pred": None}, "\\boxed{3}", "3", None),
        ({}, "so \\boxed{1,200}", "5", "1200"),
        ({}, "25 + 7 = 32", "32", "32"),
        ({}, "The answer is Paris.", "Paris", "paris"),
        ({}, "", "3", None),
    ],
)
def test_answers_that_mean_the_same_are_spelt_the_same(
    parts: dict, output: str, truth: str, answer: str | None
) -> None:
    assert extracted(parts, output, truth) == answer
