"""Weights, gates, clipping, scaling, curriculum, YAML; wrong entries say what to do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from common.reward_functions import RewardError, load_reward
from common.reward_functions.composition import compose, compose_file

RIGHT = "<think>x</think>\n<answer>2</answer>"


def score(
    config: dict[str, Any], answer: str, truth: Any = "2", extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Score with a composite."""
    return compose(config)(solution_str=answer, ground_truth=truth, data_source="d", extra_info=extra or {})


def test_weights_add_and_parts_are_visible() -> None:
    parts = [{"reward": "math", "weight": 0.8}, {"reward": "boxed_format", "weight": 0.2}]
    result = score({"parts": parts}, r"\boxed{2}")
    assert result["score"] == pytest.approx(1.0)
    assert (result["math"], result["boxed_format"], result["acc"], result["pred"]) == (1.0, 1.0, 1.0, "2")
    assert score({"parts": parts}, r"\boxed{3}")["score"] == pytest.approx(0.2)


def test_a_gate_closes_what_needs_it_and_what_needs_that() -> None:
    parts = [
        {"reward": "think_answer_format", "name": "format", "weight": 0.1},
        {"reward": "math", "needs": "format"},
        {"reward": "length", "name": "short", "weight": 0.5, "needs": ["math"], "kwargs": {"at_most": 100}},
    ]
    assert score({"parts": parts}, RIGHT)["score"] == pytest.approx(1.6)
    closed = score({"parts": parts}, "<answer>2</answer>")
    assert closed["score"] == 0.0
    assert (closed["math"], closed["math_counted"], closed["short_counted"]) == (1.0, 0.0, 0.0)
    wrong = score({"parts": parts}, "<think>x</think>\n<answer>3</answer>")
    assert wrong["score"] == pytest.approx(0.1)


def test_scale_clip_and_normalise() -> None:
    part = {"reward": "overlong_penalty", "kwargs": {"max_length": 4, "buffer": 4}}
    assert score({"parts": [{**part, "scale": [-1, 0]}]}, "a b")["score"] == pytest.approx(0.5)
    assert score({"parts": [{**part, "clip": [-0.25, 0]}]}, "a b c d e")["score"] == -0.25
    two = [{"reward": "math", "weight": 3}, {"reward": "boxed_format", "weight": 1}]
    assert score({"parts": two, "normalise": True}, r"\boxed{3}")["score"] == 0.25
    assert score({"parts": two, "clip": [0, 1]}, r"\boxed{2}")["score"] == 1.0


def test_a_weight_follows_the_training_step() -> None:
    config = {"parts": [{"reward": "boxed_format", "weight": [[10, 1.0], [20, 0.0]]}]}
    at = {
        step: score(config, r"\boxed{2}", extra={"global_steps": step})["score"]
        for step in (0, 10, 15, 20, 99)
    }
    assert at == {0: 1.0, 10: 1.0, 15: 0.5, 20: 0.0, 99: 0.0}
    assert score(config, r"\boxed{2}")["score"] == 1.0


def test_async_and_user_parts_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import asyncio\nasync def polite(solution_str, word='please'):\n"
        "    await asyncio.sleep(0)\n    return float(word in solution_str)\n"
    )
    path = tmp_path / "reward.yaml"
    path.write_text(
        "parts:\n  - {reward: 'mine.py:polite', weight: 0.5, kwargs: {word: thanks}}\n  - math\n"
        "clip: [0, 1.2]\n"
    )
    reward = load_reward(None, "common:composite", {"config": str(path)})
    result = reward(solution_str=r"thanks \boxed{2}", ground_truth="2", data_source="d", extra_info=None)
    assert result["score"] == 1.2
    assert result["polite"] == 1.0
    assert [part.name for part in compose_file(path).parts] == ["polite", "math"]

    async def inside_a_loop() -> Any:
        return await asyncio.get_running_loop().run_in_executor(
            None, lambda: reward(solution_str="thanks", ground_truth="2", data_source="d", extra_info=None)
        )

    assert asyncio.run(inside_a_loop())["polite"] == 1.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "a composite needs a list of parts"),
        ({"parts": ["math"], "normalize": True}, r"has no 'normalize', did you mean 'normalise'\?"),
        ({"parts": ["mth"]}, "unknown reward 'mth'"),
        ({"parts": [{"weight": 1}]}, "needs 'reward'"),
        ({"parts": [{"reward": "math", "wieght": 1}]}, r"a part has no 'wieght', did you mean 'weight'\?"),
        ({"parts": ["math", "math"]}, "two parts of the composite are called 'math'"),
        ({"parts": [{"reward": "math", "needs": ["format"]}]}, "needs 'format', which is no part before it"),
        (
            {"parts": [{"reward": "math", "weight": "much"}]},
            "weight of part 'math' must be a number, not 'much'",
        ),
        ({"parts": [{"reward": "math", "weight": [[5, 1], [2, 0]]}]}, "must rise"),
        ({"parts": [{"reward": "math", "clip": [1, 0]}]}, "with low < high"),
        ({"parts": [{"reward": "math", "name": "score"}]}, "a part cannot be called 'score'"),
        ({"parts": [{"reward": "math", "kwargs": {"limit": 1}}]}, "does not take the knob 'limit'"),
        ({"parts": [{"reward": "gone.py:f"}]}, "does not exist"),
    ],
)
def test_wrong_entries(config: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        compose(config)


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="does not exist"):
        compose_file(tmp_path / "gone.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("parts: [\n")
    with pytest.raises(RewardError, match="is not valid YAML"):
        compose_file(bad)
    bad.write_text("- math\n")
    with pytest.raises(RewardError, match="must hold a mapping"):
        compose_file(bad)
    with pytest.raises(RewardError, match="does not take the knob 'normalize', did you mean 'normalise'"):
        load_reward(None, "composite", {"parts": ["math"], "normalize": True})
    with pytest.raises(RewardError, match="needs either config"):
        load_reward(None, "composite")(solution_str="x", ground_truth="y", data_source="d", extra_info={})
