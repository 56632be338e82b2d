"""Chat messages and tool schemas in one spelling: OpenAI roles, text content, tool calls with JSON text.

Tool schemas and tool-call arguments differ in their keys from row to row. Parquet has one type per column
and would fill every absent key with null, which chat templates then print into the prompt, so both are
stored as JSON text; `verl_datasets` turns them back into objects when verl reads the file.
"""

from __future__ import annotations

import ast
import json
from typing import Any

from common.data_utils.answers import whole_number
from common.data_utils.errors import RowError
from common.data_utils.records import Message

ROLES: dict[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "question": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "claude": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "answer": "assistant",
    "function_call": "function_call",
    "tool_call": "function_call",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
_OPTIONAL_TEXT = ("name", "tool_call_id", "reasoning_content")
KEPT_KEYS = frozenset(
    {"role", "from", "content", "value", "tool_calls", "function_call", "weight", *_OPTIONAL_TEXT}
)


def parse_json_text(text: str, field: str) -> Any:
    """A nested value kept as text in a cell: JSON, or the Python literal that pandas writes into CSV.

    Raises:
        RowError: it is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        first = problem
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise RowError(field, f"looks like a nested value but is not valid JSON ({first})") from None


def unnest(value: Any, field: str) -> Any:
    """`value`, decoded when it is text holding a list or an object."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        return parse_json_text(value, field)
    return value


def text_of(content: Any, field: str) -> str:
    """Message content as text; lists of {"type": "text"} parts are joined.

    Raises:
        RowError: the content holds something other than text.
    """
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list):
        parts: list[str] = []
        for part in content:
            if isinstance(part, str):
                parts.append(part)
            elif (
                isinstance(part, dict)
                and isinstance(part.get("text"), str)
                and part.get("type", "text") == "text"
            ):
                parts.append(part["text"])
            else:
                kind = part.get("type", "object") if isinstance(part, dict) else type(part).__name__
                raise RowError(field, f"holds a part of type {kind!r}; only text is converted")
        return "".join(parts)
    if isinstance(content, bool) or not isinstance(content, (int, float)) or content != content:
        raise RowError(field, f"must be text, is {_kind(content)}")
    return (
        whole_number(content, field) if isinstance(content, float) and content.is_integer() else str(content)
    )


def required_text(value: Any, field: str) -> str:
    """Text that says something.

    Raises:
        RowError: missing, blank, or not text.
    """
    if type(value) is not str:
        if value is None:
            raise RowError(field, "is missing")
        value = text_of(value, field)
    if not value or value.isspace():
        raise RowError(field, "is empty")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return {bool: "true/false", float: "NaN", type(None): "null"}.get(type(value), type(value).__name__)


def _one_call(call: Any, field: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise RowError(field, f"a tool call must be an object, is {_kind(call)}")
    inner = call.get("function")
    function = inner if isinstance(inner, dict) else call
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise RowError(field, "a tool call has no function name")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise RowError(field, f"the arguments of tool call {name!r} are not valid JSON") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError(
            field, f"the arguments of tool call {name!r} must be an object, are {_kind(arguments)}"
        )
    result: dict[str, Any] = {
        "type": "function",
        "function": {"name": name, "arguments": dump_json(arguments)},
    }
    if isinstance(call.get("id"), str):
        result = {"id": call["id"], **result}
    return result


def tool_calls(value: Any, field: str) -> list[dict[str, Any]]:
    """Tool calls of one assistant turn, OpenAI shape, arguments as JSON text.

    Raises:
        RowError: not calls, or arguments that are not a JSON object.
    """
    if isinstance(value, str):
        value = parse_json_text(value, field)
    calls = value if isinstance(value, list) else [value]
    return [_one_call(call, field) for call in calls]


def dump_json(value: Any) -> str:
    """Compact, readable, deterministic JSON text.

    Raises:
        RowError: the value has no JSON form (bytes, dates nested in a Parquet source).
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise RowError("value", f"cannot be written as JSON ({problem})") from None


def message(raw: Any, field: str) -> Message:
    """One message of any chat dialect ({role, content} or {from, value}) in OpenAI form.

    Raises:
        RowError: unknown role, content that is not text, an empty turn, broken tool calls.
    """
    if not isinstance(raw, dict):
        raise RowError(field, f"a message must be an object, is {_kind(raw)}")
    role_name = raw.get("role", raw.get("from"))
    if not isinstance(role_name, str):
        raise RowError(field, "a message has no role")
    role = ROLES.get(role_name) or ROLES.get(role_name.strip().lower())
    if role is None:
        raise RowError(field, f"unknown role {role_name!r}")
    content = raw.get("content", raw.get("value"))
    calls = raw.get("tool_calls") or raw.get("function_call")
    if role == "function_call":
        calls, content, role = content, "", "assistant"
        if not calls:
            raise RowError(field, f"the {role_name} turn is empty")
    if role == "tool" and not isinstance(content, (str, list, type(None))):
        content = dump_json(content)
    text = text_of(content, field)
    result: Message = {"role": role, "content": text}
    if calls:
        if role != "assistant":
            raise RowError(field, f"a {role_name} message carries tool calls")
        result["tool_calls"] = tool_calls(calls, field)
    if len(raw) > 2:
        for key in _OPTIONAL_TEXT:
            if isinstance(raw.get(key), str) and raw[key]:
                result[key] = raw[key]
        if raw.get("weight", 1) not in (1, None):
            raise RowError(
                field, "has a weight: verl learns every assistant turn alike, so this row would be misused"
            )
    if role != "tool" and not calls and (not text or text.isspace()):
        raise RowError(field, f"the {role_name} message is empty")
    return result


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, as such or as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = parse_json_text(value, "")
        except RowError:
            return False
    if not isinstance(value, list):
        return False
    return any(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)


def messages(value: Any, field: str) -> list[Message]:
    """A whole conversation.

    Raises:
        RowError: not a list of messages, or any message is wrong (its position is named).
    """
    value = unnest(value, field)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError(
            field, "is missing" if value is None else f"must be a list of messages, is {_kind(value)}"
        )
    if not value:
        raise RowError(field, "has no messages")
    return [message(item, f"{field}[{position}]") for position, item in enumerate(value)]


def tools(value: Any, field: str = "tools") -> list[dict[str, Any]] | None:
    """Tool schemas in OpenAI form; bare {name, parameters} objects are wrapped. None where there are none.

    Raises:
        RowError: not tool schemas.
    """
    if value is None or value == "" or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, str):
        if value.isspace():
            return None
        value = parse_json_text(value, field)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError(field, f"must be a list of tool schemas, is {_kind(value)}")
    result = []
    for item in value:
        item = unnest(item, field)
        if not isinstance(item, dict):
            raise RowError(field, f"a tool schema must be an object, is {_kind(item)}")
        wrapped = isinstance(item.get("function"), dict)
        schema: dict[str, Any] = item if wrapped else {"type": "function", "function": item}
        name = schema["function"].get("name")
        if not isinstance(name, str) or not name:
            raise RowError(field, "a tool schema has no name")
        result.append(schema)
    return result or None


def split_hh(text: str, field: str) -> list[Message]:
    """An HH-RLHF transcript ("\\n\\nHuman: ...\\n\\nAssistant: ...") as messages.

    Raises:
        RowError: the text does not start with a speaker tag, or a turn is empty.
    """
    pieces = text.replace("\r\n", "\n").lstrip("\n")
    found: list[Message] = []
    for position, block in enumerate(_hh_blocks(pieces)):
        speaker, _, content = block.partition(":")
        if speaker not in ("Human", "Assistant"):
            raise RowError(field, "must start with 'Human:' or 'Assistant:'")
        content = content.strip()
        if not content:
            raise RowError(f"{field}[{position}]", f"the {speaker} turn is empty")
        found.append({"role": "user" if speaker == "Human" else "assistant", "content": content})
    return found


def _hh_blocks(text: str) -> list[str]:
    blocks: list[str] = []
    for block in text.split("\n\n"):
        if block.startswith(("Human:", "Assistant:")) or not blocks:
            blocks.append(block)
        else:
            blocks[-1] += "\n\n" + block
    return blocks
