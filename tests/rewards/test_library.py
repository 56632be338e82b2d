"""Every registered reward: examples, range, gold scores the maximum, usable by file, by name and composed."""

from __future__ import annotations

import importlib
import inspect
import math
from pathlib import Path

import pytest

from common.reward_functions import RewardError, load_reward, register, registry
from common.reward_functions.calling import ALWAYS_PASSED
from common.reward_functions.registry import Example

NAMES = registry.names()
WANTED = {
    "math",
    "gsm8k",
    "multiple_choice",
    "exact_match",
    "contains",
    "f1",
    "rouge_l",
    "code",
    "json_valid",
    "json_schema",
    "json_match",
    "keywords",
    "think_answer_format",
    "boxed_format",
    "markdown",
    "steps",
    "language",
    "length",
    "overlong_penalty",
    "cosine_length",
    "similarity",
    "repetition_penalty",
    "step_progress",
    "tool_call",
    "tool_step_rewards",
    "safety",
    "composite",
}


def test_every_promised_reward_is_there() -> None:
    assert sorted(WANTED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_examples_score_as_stated_and_stay_in_range(name: str) -> None:
    spec = registry.get(name)
    for case in spec.examples:
        result = spec.function(
            solution_str=case.answer,
            ground_truth=case.truth,
            extra_info=dict(case.extra),
            data_source="x",
            **case.kwargs,
        )
        assert result["score"] == pytest.approx(case.score), case
        assert spec.low <= result["score"] <= spec.high


@pytest.mark.parametrize("name", NAMES)
def test_gold_scores_the_maximum(name: str) -> None:
    spec = registry.get(name)
    case = spec.examples[0]
    assert case.score == spec.high
    solution = case.answer.strip("`").removeprefix("python")
    extra = {**case.extra, **case.kwargs, "solution": solution, "example": case.answer}
    answer = spec.gold(case.truth, extra)
    assert answer is not None
    result = spec.function(
        solution_str=answer,
        ground_truth=case.truth,
        extra_info=dict(case.extra),
        data_source="x",
        **case.kwargs,
    )
    assert result["score"] == pytest.approx(spec.high)


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_the_same_for_every_answer(name: str) -> None:
    spec = registry.get(name)
    case = spec.examples[0]
    reward = load_reward(None, f"common:{name}", case.kwargs)
    keys = set()
    for answer in (case.answer, "", "something else", r"\boxed{7}", "{", "<tool_call>{</tool_call>"):
        parts = reward(
            solution_str=answer, ground_truth=case.truth, extra_info=dict(case.extra), data_source="x"
        )
        assert math.isfinite(parts["score"])
        keys.add(frozenset(parts))
    assert len(keys) == 1


@pytest.mark.parametrize("name", NAMES)
def test_documented_typed_and_usable_from_its_own_file(name: str) -> None:
    spec = registry.get(name)
    assert spec.summary.endswith((".", ":"))
    assert spec.source
    signature = inspect.signature(spec.function)
    assert set(ALWAYS_PASSED) <= set(signature.parameters)
    assert signature.return_annotation == "dict[str, Any]"
    module = importlib.import_module(spec.function.__module__)
    by_file = load_reward(str(Path(module.__file__ or "")), spec.function.__name__, spec.examples[0].kwargs)
    case = spec.examples[0]
    result = by_file(
        solution_str=case.answer, ground_truth=case.truth, extra_info=dict(case.extra), data_source="x"
    )
    assert result["score"] == pytest.approx(case.score)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(
        RewardError, match=r"unknown reward 'mth', did you mean 'math'\?; known: boxed_format, code"
    ):
        registry.get("mth")


def test_duplicate_names_raise() -> None:
    with pytest.raises(RewardError, match="reward 'math' is registered twice"):

        @register("math", low=0, high=1, source="x", examples=[Example("a", "b", 1.0)])
        def other(solution_str: str) -> float:
            """Another one."""
            return 0.0


def test_a_reward_without_docstring_or_example_is_refused() -> None:
    with pytest.raises(RewardError, match="needs a docstring and at least one example"):

        @register("fresh", low=0, high=1, source="x", examples=[])
        def fresh(solution_str: str) -> float:
            """Documented."""
            return 0.0


@pytest.mark.parametrize(
    ("name", "kwargs", "truth", "message"),
    [
        ("gsm8k", {"format_score": 1.0}, "1", r"format_score must be in \[0, 1\)"),
        ("gsm8k", {}, "many", "needs a number as ground truth"),
        ("math", {}, "", "the ground truth is empty"),
        ("multiple_choice", {}, "apple", "needs letters of"),
        ("exact_match", {}, [], "a text or a list of texts"),
        ("markdown", {"wanted": ["headline"]}, "", "markdown knows heading"),
        ("keywords", {"required": ["("]}, "", "is no regular expression"),
        ("language", {"language": "tlh"}, "", "language must be one of en"),
        ("repetition_penalty", {"ngram": 0}, "", "ngram must be at least 1"),
        ("length", {"at_least": 5, "at_most": 4}, "", "1 <= at_least <= at_most"),
        ("overlong_penalty", {"buffer": 0}, "", "0 < buffer <= max_length"),
        ("cosine_length", {"base": "language"}, "", "needs a base that returns acc"),
        ("step_progress", {}, "12", "needs a list of intermediate results"),
        ("tool_step_rewards", {"discount": 0.0}, "", r"discount must be in \(0, 1\]"),
        ("json_schema", {}, {"type": "nonsense"}, "the JSON schema is wrong"),
        ("json_match", {}, "{", "the gold JSON is not valid JSON"),
        ("tool_call", {}, [{"tool": "x"}], "a gold tool call needs name and arguments"),
        ("code", {}, {"cases": []}, "code tests need test_list"),
        ("code", {}, ["print(1)"], "a code test must be an assert"),
        ("steps", {"enough": 0}, "", "enough must be at least 1"),
    ],
)
def test_wrong_knobs_and_truths_say_what_to_do(name: str, kwargs: dict, truth: object, message: str) -> None:
    reward = load_reward(None, name, kwargs)
    with pytest.raises(RewardError, match=message):
        reward(solution_str="text", ground_truth=truth, extra_info={}, data_source="x")


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("The answer is (B)", "B", 1.0),
        ("Answer: b", "B", 1.0),
        ("**Answer:** C) because", "C", 1.0),
        (r"\boxed{\text{A}}", "A", 1.0),
        (r"\boxed{A, C}", "AC", 1.0),
        (r"\boxed{A}", "AC", 0.0),
        ("<answer>D. Paris</answer>", "D", 1.0),
        ("答案：B", "B", 1.0),
        ("正确选项是（C）", "C", 1.0),
        ("D", "D", 1.0),
        ("I would say A is a good option but so is B", "A", 0.0),
        ("The answer is A. Wait, the answer is D.", "D", 1.0),
        ("<think>A</think>", "A", 0.0),
        ("I am not sure.", "I", 0.0),
    ],
)
def test_multiple_choice_table(answer: str, gold: str, score: float) -> None:
    assert registry.get("multiple_choice").function(solution_str=answer, ground_truth=gold)["score"] == score


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("北京", "北京。", 1.0),
        ("Ｐａｒｉｓ", "paris", 1.0),
        ("<think>London?</think>Paris", "Paris", 1.0),
        ("The answer is Paris.", "Paris", 1.0),
        ("Paris, I think", "Paris", 0.0),
    ],
)
def test_exact_match_table(answer: str, gold: str, score: float) -> None:
    assert registry.get("exact_match").function(solution_str=answer, ground_truth=gold)["score"] == score
