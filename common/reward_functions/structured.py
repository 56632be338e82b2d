"""Rewards for structured output: valid JSON, JSON that fits a schema, tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from common.reward_functions.answers import after_thinking, enclosed
from common.reward_functions.errors import RewardError
from common.reward_functions.registry import Example, register

_FENCE = re.compile(r"```[ \t]*(?:json)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_MAX_CHARACTERS = 1_000_000


def read_json(response: str, anywhere: bool) -> tuple[bool, Any]:
    """(found, value) of the JSON in a response: all of it, else its last fence, else its first object."""
    text = after_thinking(response).strip()[:_MAX_CHARACTERS]
    candidates = [text, *reversed(_FENCE.findall(text))] if anywhere else [text]
    for candidate in candidates:
        try:
            return True, json.loads(candidate)
        except (ValueError, RecursionError):
            continue
    start = min((p for p in (text.find("{"), text.find("[")) if p >= 0), default=-1)
    if anywhere and start >= 0:
        try:
            return True, json.JSONDecoder().raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            pass
    return False, None


def _gold_json(truth: Any, extra: Mapping[str, Any]) -> str:
    return truth if isinstance(truth, str) else json.dumps(truth, ensure_ascii=False)


def _mapping(truth: Any, what: str) -> Any:
    if isinstance(truth, str):
        try:
            return json.loads(truth)
        except json.JSONDecodeError as error:
            raise RewardError(f"{what} is not valid JSON: {error.msg} at character {error.pos}") from None
    return truth


@register(
    "json_valid",
    low=0.0,
    high=1.0,
    source="RFC 8259, by Python's json",
    gold=lambda truth, extra: json.dumps({"answer": truth}, ensure_ascii=False, default=str),
    examples=(
        Example('{"a": [1, 2]}', "", 1.0),
        Example('Here it is:\n```json\n{"a": 1}\n```', "", 0.5),
        Example("{'a': 1}", "", 0.0),
    ),
)
def json_valid(
    solution_str: str,
    ground_truth: Any = None,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    inside_text: float = 0.5,
) -> dict[str, Any]:
    """1 for an answer that is JSON, `inside_text` for one that holds JSON among other text."""
    if not 0.0 <= inside_text <= 1.0:
        raise RewardError(f"inside_text must be in [0, 1], not {inside_text}")
    whole, _ = read_json(solution_str, anywhere=False)
    found = whole or read_json(solution_str, anywhere=True)[0]
    return {"score": 1.0 if whole else inside_text * found, "json": float(found)}


@register(
    "json_match",
    low=0.0,
    high=1.0,
    source="own rule: share of equal leaves",
    gold=_gold_json,
    examples=(
        Example('{"a": 1, "b": [2, 3]}', {"a": 1, "b": [2, 3]}, 1.0),
        Example('{"a": 1, "b": [2, 4]}', '{"a": 1, "b": [2, 3]}', 0.5),
        Example("no json", {"a": 1}, 0.0),
    ),
)
def json_match(
    solution_str: str,
    ground_truth: Any,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """How far the JSON in the answer equals the gold one: equal leaves over all leaves of both (Jaccard)."""
    gold = _leaves(_mapping(ground_truth, "the gold JSON"))
    found, value = read_json(solution_str, anywhere=True)
    given = _leaves(value) if found else set()
    score = len(gold & given) / len(gold | given) if found else 0.0
    return {"score": score, "acc": float(score == 1.0), "json": float(found)}


def _leaves(value: Any, path: str = "") -> set[tuple[str, str]]:
    leaves: set[tuple[str, str]] = set()
    todo = [(path, value)]
    while todo:
        where, item = todo.pop()
        if isinstance(item, dict) and item:
            todo += [(f"{where}.{key}", inner) for key, inner in item.items()]
        elif isinstance(item, list) and item:
            todo += [(f"{where}[{index}]", inner) for index, inner in enumerate(item)]
        else:
            leaves.add((where, json.dumps(item, ensure_ascii=False, default=str)))
    return leaves


@register(
    "json_schema",
    low=0.0,
    high=1.0,
    source="JSON Schema, by the jsonschema package",
    gold=lambda truth, extra: _gold_json(extra["example"], extra) if "example" in extra else None,
    examples=(
        Example(
            '{"n": 3}', {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}, 1.0
        ),
        Example('{"n": "3"}', {"type": "object", "properties": {"n": {"type": "integer"}}}, 0.25),
        Example("n = 3", {"type": "object"}, 0.0),
    ),
)
def json_schema(
    solution_str: str,
    ground_truth: Any,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    schema: Mapping[str, Any] | None = None,
    valid_json: float = 0.25,
) -> dict[str, Any]:
    """1 for JSON that fits the schema, `valid_json` for other JSON, 0 for none.

    Args:
        schema: the schema for all rows; left out, each row's ground truth is its schema (a dict or JSON
        text).
    """
    import jsonschema

    rule = _mapping(schema if schema is not None else ground_truth, "the JSON schema")
    try:
        checker = jsonschema.validators.validator_for(rule)
        checker.check_schema(rule)
    except jsonschema.SchemaError as error:
        raise RewardError(f"the JSON schema is wrong: {error.message}") from None
    found, value = read_json(solution_str, anywhere=True)
    problem = next(iter(checker(rule).iter_errors(value)), None) if found else None
    good = found and problem is None
    reason = "fits" if good else problem.message[:120] if problem else "no JSON found"
    return {
        "score": 1.0 if good else valid_json * found,
        "acc": float(good),
        "json": float(found),
        "reason": reason,
    }


def read_tool_calls(response: str) -> list[tuple[str, Any]] | None:
    """(name, arguments) of every call in the Hermes form `<tool_call>{...}</tool_call>`, or in bare JSON.

    Returns:
        None where a call is not valid JSON of the form {"name": ..., "arguments": {...}}; [] without
        any call.
    """
    text = after_thinking(response)
    blocks = enclosed(text, "<tool_call>", "</tool_call>")
    if not blocks and text.strip()[:1] in ("{", "["):
        blocks = [text]
    elif not blocks and "<tool_call>" in text:
        return None
    calls: list[tuple[str, Any]] = []
    for block in blocks:
        try:
            value = json.loads(block)
        except (ValueError, RecursionError):
            return None
        for item in value if isinstance(value, list) else [value]:
            call = _one_call(item)
            if call is None:
                return None
            calls.append(call)
    return calls


def _one_call(item: Any) -> tuple[str, Any] | None:
    if not isinstance(item, Mapping):
        return None
    item = item.get("function") if isinstance(item.get("function"), Mapping) else item
    arguments = item.get("arguments", item.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    name = item.get("name")
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, Mapping) else None


@register(
    "tool_call",
    low=0.0,
    high=1.0,
    source="format, name and arguments as in ToolRL (arXiv:2504.13958, section 3.3), scaled to 0..1",
    gold=lambda truth, extra: "\n".join(
        f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
        for call in (truth if isinstance(truth, list) else [_mapping(truth, "the gold call")])
    ),
    examples=(
        Example(
            '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>',
            {"name": "add", "arguments": {"a": 1, "b": 2}},
            1.0,
        ),
        Example(
            '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 3}}</tool_call>',
            {"name": "add", "arguments": {"a": 1, "b": 2}},
            0.75,
        ),
        Example('<tool_call>{"name": "add"</tool_call>', {"name": "add", "arguments": {}}, 0.0),
        Example("3", [], 1.0),
    ),
)
def tool_call(
    solution_str: str,
    ground_truth: Any,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Whether the answer calls the gold tools: half for names, half for arguments; in any order.

    The ground truth is one call or a list of calls {"name", "arguments"} (or JSON text); [] wants no
    call at all.
    A call that is not valid JSON scores 0.
    """
    truth = _mapping(ground_truth, "the gold tool call")
    listed = truth if isinstance(truth, Sequence) else [truth]
    golds = [_one_call(item) for item in listed]
    if any(gold is None for gold in golds):
        raise RewardError(f"a gold tool call needs name and arguments: {str(truth)[:100]}")
    calls = read_tool_calls(solution_str)
    if calls is None:
        return {"score": 0.0, "acc": 0.0, "format": 0.0, "names": 0.0, "arguments": 0.0}
    left, names, arguments = list(calls), 0.0, 0.0
    for gold in golds:
        assert gold is not None
        same_name = [call for call in left if call[0] == gold[0]]
        if same_name:
            best = max(same_name, key=lambda call: _agreement(call[1], gold[1]))
            left.remove(best)
            names += 1
            arguments += _agreement(best[1], gold[1])
    total = max(len(golds), len(calls))  # superfluous calls cost as much as missing ones
    names, arguments = (names / total, arguments / total) if total else (1.0, 1.0)
    score = 0.5 * names + 0.5 * arguments
    return {"score": score, "acc": float(score == 1.0), "format": 1.0, "names": names, "arguments": arguments}


def _agreement(given: Mapping[str, Any], gold: Mapping[str, Any]) -> float:
    """Equal arguments over all arguments of both."""
    every = given.keys() | gold.keys()
    return sum(k in given and k in gold and given[k] == gold[k] for k in every) / len(every) if every else 1.0
