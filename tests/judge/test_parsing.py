"""What counts as a score, and what does not: a table with a reason per line."""

from __future__ import annotations

import pytest

from common.judge.failures import CallFailed
from common.judge.parsing import parse_reason, parse_score

SCORES = [
    ('{"score": 7}', 7.0, "plain JSON"),
    ('{"reason": "ok", "score": 7.5}', 7.5, "a decimal"),
    ('{"score": "8"}', 8.0, "a number as text"),
    ('{"score": "8/10"}', 8.0, "a fraction as text"),
    ('{"Score": 3}', 3.0, "another case"),
    ('{"overall score": 3}', 3.0, "a blank for the underscore"),
    ('Sure!\n```json\n{"reason": "a {brace}", "score": 4}\n```\nDone', 4.0, "fenced, braces inside"),
    ('{"score": 2} Wait, better: {"score": 6}', 6.0, "the last object counts"),
    ('{"reason": "rated 9/10 by others", "score": 1}', 1.0, "JSON goes before numbers in its texts"),
    ('<think>{"score": 9}, no, lower</think>{"score": 3}', 3.0, "thoughts are no verdict"),
    ("Score: 6", 6.0, "named"),
    ("**Score:** 6/10", 6.0, "named, bold, out of the range's top"),
    ("Clarity score: 3\nFinal score: 8", 8.0, "the last named one"),
    ("I give it a rating of 7 out of 10.", 7.0, "in words"),
    ("评分：8分", 8.0, "Chinese"),
    ("得分为 9", 9.0, "Chinese with a verb"),
    ("Rating: [[5]]", 5.0, "MT-Bench's brackets"),
    ("It deserves 7/10, I think.", 7.0, "one lone fraction"),
    ("10", 10.0, "nothing but a number"),
    (" 4.5.\n", 4.5, "a number and a full stop"),
    ("0", 0.0, "a real zero is a score"),
]
FAILURES = [
    ("", "unparsable", "nothing"),
    ("I would rather not say.", "unparsable", "no number"),
    ("There are 3 problems with this answer.", "unparsable", "a number that is no score"),
    ("Between 6/10 and 8/10", "unparsable", "two candidates"),
    ("Score: 7-8", "unparsable", "a range"),
    ("Score: 8,5", "unparsable", "a decimal comma must not become 8"),
    ("Score: 4/5", "unparsable", "another scale"),
    ('{"score": "4/5"}', "unparsable", "another scale in JSON"),
    ('{"score": null}', "unparsable", "null is not 0"),
    ('{"score": true}', "unparsable", "true is not 1"),
    ('{"score": NaN}', "unparsable", "NaN"),
    ('{"score": "good"}', "unparsable", "a word"),
    ('{"score": [7]}', "unparsable", "a list"),
    ("<think>Score: 7", "unparsable", "cut off while thinking"),
    ('{"score": 11}', "out_of_range", "too high"),
    ("Score: -1", "out_of_range", "too low"),
    ('{"score": 85}', "out_of_range", "percent on a scale of ten"),
]


@pytest.mark.parametrize(("reply", "wanted", "why"), SCORES, ids=[why for *_, why in SCORES])
def test_scores(reply: str, wanted: float, why: str) -> None:
    assert parse_score(reply, 0, 10) == wanted


@pytest.mark.parametrize(("reply", "kind", "why"), FAILURES, ids=[why for *_, why in FAILURES])
def test_garbage_is_a_failure_and_never_a_number(reply: str, kind: str, why: str) -> None:
    with pytest.raises(CallFailed) as caught:
        parse_score(reply, 0, 10)
    assert caught.value.kind == kind


def test_own_pattern_is_the_only_form_read() -> None:
    assert parse_score("VERDICT=3 score: 9", 0, 10, r"VERDICT=(\d+)") == 3.0
    with pytest.raises(CallFailed, match="no score"):
        parse_score('{"score": 9}', 0, 10, r"VERDICT=(\d+)")


@pytest.mark.parametrize("depth", [10_000])
def test_deep_nesting_ends(depth: int) -> None:
    with pytest.raises(CallFailed):
        parse_score('{"a":' * depth, 0, 10)


def test_reason() -> None:
    assert parse_reason('{"score": 1, "reason": "two\\n lines"}') == "two lines"
    assert parse_reason("Score: 1") == ""
