"""From a judge's reply to a number: JSON first, then the forms that models fall back to; else a failure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from common.judge.failures import CallFailed

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_KEYS = ("score", "final_score", "overall_score", "rating", "grade", "得分", "评分", "分数")
# A number that is not a piece of another one: "8,5", "7-8" and "1.2.3" are no scores.
_NUMBER = r"(?<![\d.,])([-+]?\d+(?:\.\d+)?)(?![\d]|[.,]\d|\s*[-–~]\s*\d)"
_OUT_OF = r"(?:\s*(?:/|out\s+of|of|分?\s*[,，]?\s*满分)\s*(\d+(?:\.\d+)?)(?![\d.,]*\d)|\s*分)?"
_NAMED = re.compile(
    r"(?:\b(?:score|rating|grade|mark)\b|得分|评分|分数|打分)[*_`\"'’”]*\s*(?:is|of|=|:|：|为|是|->|→)*\s*[*_`\"'\[(]*\s*"
    + _NUMBER
    + _OUT_OF,
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"\[\[\s*" + _NUMBER + r"\s*\]\]")
_FRACTION = re.compile(_NUMBER + r"\s*(?:/|out\s+of)\s*(\d+(?:\.\d+)?)(?![\d.,]*\d)", re.IGNORECASE)
_BARE = re.compile(r"\W*?" + _NUMBER + _OUT_OF + r"[\s.。*`\"]*")
_LONGEST_REASON = 300


def parse_score(reply: str, low: float, high: float, pattern: str = "") -> float:
    """The score in `reply`, between `low` and `high`.

    Order: the user's `pattern` (alone where given), the last JSON object with a score, `[[8]]`, the last
    "score: 8", the only "8/10", a reply that is nothing but a number.

    Raises:
        CallFailed: "unparsable" where no score, or two different ones, can be read; "out_of_range" for a score
            outside the range or on another scale.
    """
    text = _THOUGHT.sub("", reply).strip()
    if pattern:
        found = re.findall(pattern, text)
        score = _plain(found[-1]) if found else None
    else:
        values = list(_json_values(text))
        score = _value(values[-1], high) if values else _pattern_score(text, high)
    if score is None:
        raise CallFailed("unparsable", f"no score in the judge's reply {_short(reply)}", reply=reply)
    if not low <= score <= high:
        raise CallFailed(
            "out_of_range", f"the judge's score {score:g} is outside {low:g} to {high:g}", reply=reply
        )
    return score


def parse_reason(reply: str) -> str:
    """The judge's `reason` where it gave one as JSON, on one line, shortened."""
    for found in _objects(_THOUGHT.sub("", reply)):
        if isinstance(found.get("reason"), str):
            return " ".join(found["reason"].split())[:_LONGEST_REASON]
    return ""


def _json_values(text: str) -> Iterator[Any]:
    """What stands under a score's key, object by object."""
    for found in _objects(text):
        lowered = {str(key).strip().lower().replace(" ", "_"): value for key, value in found.items()}
        key = next((key for key in _KEYS if key in lowered), None)
        if key is not None:
            yield lowered[key]


def _value(value: Any, high: float) -> float | None:
    """A JSON score: a number, or text such as "8" and "8/10"."""
    if isinstance(value, str):
        match = _BARE.fullmatch(value.strip())
        return _scaled(match[1], match[2], high) if match else None
    return _plain(value)


def _plain(value: Any) -> float | None:
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if number is not None and math.isfinite(number) else None


def _objects(text: str) -> Iterator[Mapping[str, Any]]:
    """Every outermost JSON object in `text`, in order, fences and prose around them ignored."""
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            end = at + 1
        except RecursionError:
            return
        else:
            if isinstance(found, Mapping):
                yield found
        at = text.find("{", end)


def _pattern_score(text: str, high: float) -> float | None:
    bracketed = _BRACKETED.findall(text)
    if bracketed:
        return _plain(bracketed[-1])
    named = [_scaled(match[1], match[2], high) for match in _NAMED.finditer(text)]
    if named:
        return named[-1]
    fractions = {_scaled(match[1], match[2], high) for match in _FRACTION.finditer(text)}
    if len(fractions) == 1:
        return fractions.pop()
    bare = _BARE.fullmatch(text)
    return _scaled(bare[1], bare[2], high) if bare else None


def _scaled(number: str, out_of: str | None, high: float) -> float | None:
    """`number`, None where it is given out of another maximum than ours."""
    return None if out_of is not None and float(out_of) != high else _plain(number)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 120 else text[:117] + "...")
