"""Ground truths: found in worked solutions, and brought to one spelling."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from common.data_utils.errors import RowError

_EXACT = 2.0**53
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")
_MONEY = re.compile(r"^\$\s*(?=[-+]?[\d.])")


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`, braces balanced; None where there is none or it never closes."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for position in range(begin, len(text)):
        char = text[position]
        if char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return text[begin:position].strip()
    return None


def _plain_number(answer: str) -> str:
    """Without a leading dollar sign and thousands separators."""
    return _THOUSANDS.sub("", _MONEY.sub("", answer))


def extract_answer(text: str) -> str | None:
    r"""The final answer of a worked solution: the GSM8K `#### x` that ends it, else the last `\boxed{x}`.

    Thousands separators and a leading dollar sign are dropped from `#### 1,200`, as verl's own GSM8K
    preprocessing does, because its scorer compares the texts.
    """
    start = text.rfind("####")
    if start >= 0:
        answer = text[start + 4 :].strip()
        if answer and "\n" not in answer:
            return _plain_number(answer) if "$" in answer or "," in answer else answer
    if "\\boxed{" in text:
        return last_boxed(text) or None
    return None


def is_missing(value: Any) -> bool:
    """None, NaN (what pandas exports for a hole) and blank text all mean: no value."""
    if isinstance(value, str):
        return not value or value.isspace()
    if value is None:
        return True
    return isinstance(value, float) and math.isnan(value)


def whole_number(value: float, field: str) -> str:
    """42.0 -> "42" (pandas writes whole numbers so, in columns with holes).

    Raises:
        RowError: beyond 2**53, where a JSON number has lost its last digits.
    """
    if abs(value) >= _EXACT:
        raise RowError(field, f"{value!r} is too large to be exact as a number; write it as text")
    return str(int(value))


def truth_text(value: Any, field: str = "ground_truth") -> str:
    """A ground truth as text: 42 and 42.0 -> "42", lists and objects -> JSON.

    Raises:
        RowError: the value is missing.
    """
    if is_missing(value):
        raise RowError(field, "is missing or empty")
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        return whole_number(value, field)
    if isinstance(value, (list, dict)):
        if not value:
            raise RowError(field, "is missing or empty")
        return json.dumps(value, ensure_ascii=False)
    return str(value)
