"""Reading numbers and finding the final answer."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.reward_functions import registry
from common.reward_functions.answers import after_thinking, final_answer, last_boxed, last_number
from common.reward_functions.equality import clean, parse, same
from common.reward_functions.numbers import parse_number


@given(st.integers(-(10**30), 10**30))
def test_integers_are_read_exactly_with_and_without_commas(number: int) -> None:
    assert parse_number(str(number)) == number
    assert parse_number(f"{number:,}") == number


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
def test_fractions_are_read_exactly(top: int, bottom: int) -> None:
    assert parse_number(f"{top}/{bottom}") == Fraction(top, bottom)
    assert parse_number(rf"\frac{{{top}}}{{{bottom}}}") == Fraction(top, bottom)


@given(st.text(max_size=80))
def test_any_text_is_survived(text: str) -> None:
    parse_number(text)
    final_answer(text)
    same(parse(clean(text)), parse(clean("1")))


DIGITS = "零一二三四五六七八九"


def chinese(number: int) -> str:
    """Standard Chinese for 0..9999, written independently of the parser."""
    if number == 0:
        return "零"
    text, gap = "", False
    for power, unit in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // power % 10
        if digit:
            text += ("零" if gap and text else "") + DIGITS[digit] + unit
            gap = False
        else:
            gap = True
    return text


@pytest.mark.parametrize("myriads", [0, 1, 20, 305, 9999])
def test_chinese_numbers_round_trip(myriads: int) -> None:
    for rest in [*range(0, 120), 205, 1000, 1001, 1010, 1100, 2024, 9999]:
        if myriads == 0:
            text = chinese(rest)
        else:
            gap = "零" if 0 < rest < 1000 else ""
            text = chinese(myriads) + "万" + (gap + chinese(rest) if rest else "")
        assert parse_number(text) == myriads * 10**4 + rest, text


@pytest.mark.parametrize(
    "text", ["", "abc", "1/0", "--1", "1.2.3", "1e999", "9" * 500, r"\frac{1}{0}", "十个", "and"]
)
def test_what_is_no_number_is_none(text: str) -> None:
    assert parse_number(text) is None


def test_thinking_is_cut_off() -> None:
    assert after_thinking("<think>a</think>b") == "b"
    assert after_thinking("a</think>b") == "b"
    assert after_thinking("b<think>a") == "b"
    assert after_thinking("b") == "b"


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"\boxed{1}", "1"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{a \boxed{b}}", "b"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed {3}", "3"),
        ("none", None),
        (r"\boxed{", None),
    ],
)
def test_last_boxed(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("costs $1,234.50 now", "1,234.50"),
        ("in 2020, 3 of 4", "4"),
        ("共8个", "8"),
        ("1/2", "1/2"),
        ("v1a", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    "unit",
    [r"\boxed{", r"{\boxed{1}", "1,", "{", "answer is ", "answer: \n", "$", "一", r"\(", "<answer>",
     "<tool_call>",     " ", "\n", "```", "- ", "answer" + " " * 50, "选 ", "a", "a b ", "1", "\\", "|", "第一步"],
)  # fmt: skip
def test_no_text_makes_a_reward_slow(unit: str) -> None:
    text = (unit * 30_000)[:30_000]
    for name in registry.names():
        if name in ("composite", "code"):
            continue
        spec = registry.get(name)
        case = spec.examples[0]
        begin = time.perf_counter()
        spec.function(solution_str=text, ground_truth=case.truth, extra_info=dict(case.extra), **case.kwargs)
        assert time.perf_counter() - begin < 1.0, name
