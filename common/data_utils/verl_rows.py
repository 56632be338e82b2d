"""Rows as stored -> rows as chat templates want them: JSON text back to objects, absent keys gone."""

from __future__ import annotations

import json
from typing import Any

from common.data_utils.records import Message, Row

_TURNS = ("messages", "prompt", "chosen", "rejected")


def restore_turns(turns: list[Message]) -> list[Message]:
    """Messages without the nulls that Parquet adds, tool-call arguments as objects."""
    result = []
    for turn in turns:
        kept = {key: value for key, value in turn.items() if value is not None}
        calls = kept.get("tool_calls")
        if calls:
            kept["tool_calls"] = [_call(call) for call in calls]
        result.append(kept)
    return result


def _call(call: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in call.items() if value is not None}
    function = kept.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        kept["function"] = {**function, "arguments": json.loads(function["arguments"])}
    return kept


def restore_tools(tools: Any) -> Any:
    """Tool schemas as a list of objects; None where the row has none."""
    return json.loads(tools) if isinstance(tools, str) else tools


def restore(row: Row) -> Row:
    """A whole stored row; top-level columns that are null (tools of rows without) are left out."""
    result = {key: value for key, value in row.items() if value is not None}
    for name in _TURNS:
        if isinstance(result.get(name), list):
            result[name] = restore_turns(result[name])
    if "tools" in result:
        result["tools"] = restore_tools(result["tools"])
    return result
