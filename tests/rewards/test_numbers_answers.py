"""Reading numbers and finding the final answer."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.reward_functions import registry
from common.reward_functions.algebra import same_formula
from common.reward_functions.answers import after_thinking, final_answer, last_boxed, last_number
from common.reward_functions.equality import clean, parse, same
from common.reward_functions.numbers import parse_number


@settings(max_examples=40, deadline=None)
@given(st.integers(-(10**30), 10**30))
def test_integers_are_read_exactly_with_and_without_commas(number: int) -> None:
    assert parse_number(str(number)) == number
    assert parse_number(f"{number:,}") == number


@settings(max_examples=40, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
def test_fractions_are_read_exactly(top: int, bottom: int) -> None:
    assert parse_number(f"{top}/{bottom}") == Fraction(top, bottom)
    assert parse_number(rf"\frac{{{top}}}{{{bottom}}}") == Fraction(top, bottom)


@settings(max_examples=40, deadline=None)
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
    [r"\boxed{", r"{\boxed{1}", "<tool_call>", "1,", "{", "answer is ", "answer: \n", "$", "一", r"\(",
     "<answer>", " ", "\n", "```", "- ", "answer" + " " * 50, "选 ", "a", "a b ", "1", "\\", "|", "第一步"],
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


@pytest.mark.parametrize(
    ("left", "right", "verdict"),
    [
        ("(x+1)^2", "x^2+2x+1", True),
        ("x^2+1", "x^2+2x+1", False),
        (r"\frac{x^2-1}{x-1}", "x+1", True),
        (r"x^{-1}", r"\frac{1}{x}", True),
        ("-x^2", "(-x)^2", False),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        (r"\sqrt{x^2}", "x", False),  # differs for negative x
        (r"\sqrt{x}", r"x^{1/2}", None),  # no value at a negative point
        (r"\sin(2x)", r"2\sin(x)\cos(x)", True),
        ("ab", "ba", True),
        ("3.1415926", r"\pi", None),  # too close to call with floats
        ("3.14", r"\pi", False),
        ("x+1", "y+1", None),
        ("f(x)", "xf", None),
        ("e^x", "e^x", None),
        ("x^2^2", "x^4", None),
        ("x 2", "2x", None),
        ("x/0", "x", None),
        ("((x", "x", None),
        ("9^{9^{9^9}}", "1", None),
        (r"\pi", "999999999^{64}", None),  # too large for a float
        ("(" * 100 + "x" + ")" * 100, "x", None),
        ("", "x", None),
    ],
)
def test_formulas_by_their_values(left: str, right: str, verdict: bool | None) -> None:
    assert same_formula(left, right) is verdict


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=6), st.integers(-9, 9))
def test_expanded_polynomials_equal_their_factored_form(roots: list[int], extra: int) -> None:
    coefficients = [1]
    for root in roots:
        shifted = [*coefficients, 0]
        coefficients = [s - root * c for s, c in zip(shifted, [0, *coefficients], strict=True)]
    top = len(coefficients) - 1
    expanded = "+".join(f"({c})x^{{{top - i}}}" for i, c in enumerate(coefficients))
    factored = "".join(f"(x-({root}))" for root in roots)
    assert same_formula(expanded, factored) is True
    assert same_formula(f"{expanded}+({extra})", factored) is (extra == 0)
