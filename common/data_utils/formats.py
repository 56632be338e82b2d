"""The registry of source formats: their columns, their look, their converter. Order is precedence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from common.data_utils import converters
from common.data_utils import messages as chat
from common.data_utils.answers import is_missing
from common.data_utils.errors import DataError
from common.data_utils.records import Row

ALIASES: dict[str, tuple[str, ...]] = {
    "question": ("question", "problem", "Question", "Problem"),
    "answer": ("answer", "solution", "Answer", "Solution"),
    "solution": ("solution", "rationale", "Solution"),
    "prompt": ("prompt", "question", "instruction", "input", "query", "problem", "context", "Prompt"),
    "response": ("response", "completion", "output", "answer", "target", "reply", "Response", "Completion"),
    "instruction": ("instruction", "Instruction"),
    "input": ("input", "context", "Input"),
    "output": ("output", "response", "Output"),
    "query": ("query", "question", "prompt", "instruction"),
    "history": ("history", "History"),
    "system": ("system", "system_prompt"),
    "messages": ("messages", "conversation", "dialogue"),
    "conversations": ("conversations", "conversation"),
    "tools": ("tools", "functions"),
    "chosen": ("chosen", "chosen_response", "preferred"),
    "rejected": ("rejected", "rejected_response", "dispreferred"),
    "responses": ("responses", "completions", "candidates", "outputs"),
    "scores": ("scores", "ratings", "rewards", "overall_scores"),
    "ranks": ("ranks", "rank"),
    "reward_model": ("reward_model",),
    "ground_truth": ("ground_truth", "gold", "label", "final_answer", "reference_answer", "expected_answer"),
    "data_source": ("data_source",),
    "ability": ("ability",),
    "agent_name": ("agent_name",),
    "extra_info": ("extra_info",),
    "enable_thinking": ("enable_thinking",),
}
SHARED = (
    "system",
    "tools",
    "ground_truth",
    "data_source",
    "ability",
    "agent_name",
    "extra_info",
    "enable_thinking",
)


@dataclass(frozen=True)
class Format:
    """A source format.

    Attributes:
        required: columns without which a file is not of this format.
        optional: columns of its own beyond `SHARED`.
        tasks: targets it can become.
        looks_like: does one row have the shape? Gets the row under canonical names.
        convert: the pure converter.
        example: one row, for help texts.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    tasks: tuple[str, ...]
    looks_like: Callable[[Row], bool]
    convert: converters.Convert
    example: str


def _is_nested(value: Any) -> bool:
    return isinstance(value, (list, dict)) or (isinstance(value, str) and value.lstrip()[:1] in ("[", "{"))


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))


def _has_pair(row: Row) -> bool:
    return not is_missing(row.get("chosen")) and not is_missing(row.get("rejected"))


def _always(row: Row) -> bool:
    return True


_CHAT = ("sft", "rl")
_ALL = (
    Format(
        name="verl",
        required=("prompt", "reward_model"),
        optional=(),
        tasks=("rl", "sft"),
        looks_like=lambda row: _is_nested(row.get("reward_model")),
        convert=converters.verl_rl,
        example='{"data_source": "d", "prompt": [{"role": "user", "content": "q"}], '
        '"reward_model": {"ground_truth": "4"}}',
    ),
    Format(
        name="preference",
        required=("chosen", "rejected"),
        # `prompt` comes last: its aliases would take the columns of the fields before it
        optional=("conversations", "messages", "instruction", "input", "question", "prompt"),
        tasks=("preference", "sft", "rl"),
        looks_like=_has_pair,
        convert=converters.preference,
        example='{"prompt": "q", "chosen": "good", "rejected": "bad"}',
    ),
    Format(
        name="ranked",
        required=("prompt", "responses"),
        optional=("scores", "ranks"),
        tasks=("preference", "sft"),
        looks_like=lambda row: _is_list(row.get("responses")),
        convert=converters.ranked,
        example='{"prompt": "q", "responses": ["a", "b"], "scores": [1, 0]}',
    ),
    Format(
        name="messages",
        required=("messages",),
        optional=(),
        tasks=_CHAT,
        looks_like=lambda row: chat.is_chat(row.get("messages")),
        convert=converters.dialogue("messages"),
        example='{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}',
    ),
    Format(
        name="sharegpt",
        required=("conversations",),
        optional=(),
        tasks=_CHAT,
        looks_like=lambda row: chat.is_chat(row.get("conversations")),
        convert=converters.dialogue("conversations"),
        example='{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}',
    ),
    Format(
        name="alpaca_ranked",
        required=("instruction", "output"),
        optional=("input", "history"),
        tasks=("preference", "sft"),
        looks_like=lambda row: _is_list(row.get("output")),
        convert=converters.alpaca,
        example='{"instruction": "do", "output": ["good", "bad"]}',
    ),
    Format(
        name="alpaca",
        required=("instruction", "output"),
        optional=("input", "history"),
        tasks=_CHAT,
        looks_like=_always,
        convert=converters.alpaca,
        example='{"instruction": "do", "input": "", "output": "done"}',
    ),
    Format(
        name="history",
        required=("query", "response"),
        optional=("history",),
        tasks=_CHAT,
        looks_like=lambda row: "history" in row,
        convert=converters.query_history,
        example='{"query": "q", "response": "a", "history": [["q0", "a0"]]}',
    ),
    Format(
        name="qa",
        required=("question", "answer"),
        optional=("solution",),
        tasks=_CHAT,
        looks_like=lambda row: (
            not isinstance(row.get("question"), list) and not chat.is_chat(row.get("question"))
        ),
        convert=converters.qa,
        example='{"question": "2 + 2?", "answer": "... #### 4"}',
    ),
    Format(
        name="prompt_response",
        required=("prompt", "response"),
        optional=(),
        tasks=_CHAT,
        looks_like=_always,
        convert=converters.prompt_response,
        example='{"prompt": "q", "response": "a"}',
    ),
    Format(
        name="prompt_only",
        required=("prompt",),
        optional=(),
        tasks=("rl",),
        looks_like=_always,
        convert=converters.prompt_response,
        example='{"prompt": "q", "ground_truth": "4"}',
    ),
)
FORMATS: dict[str, Format] = {item.name: item for item in _ALL}


def fields_of(item: Format) -> tuple[str, ...]:
    """Every canonical column the converter may read."""
    return (*item.required, *item.optional, *SHARED)


def resolve_columns(item: Format, present: Iterable[str], given: dict[str, str]) -> dict[str, str] | None:
    """Canonical field -> source column, the user's map first; None when a required column is absent."""
    available = set(present)
    taken = set(given.values())
    result: dict[str, str] = {}
    for field in fields_of(item):
        if field in given:
            result[field] = given[field]
            continue
        for name in ALIASES[field]:
            if name in available and name not in taken and name not in result.values():
                result[field] = name
                break
        else:
            if field in item.required:
                return None
    return result


def rename(row: Row, columns: dict[str, str]) -> Row:
    """The row under canonical names (only the columns the format reads)."""
    return {field: row[name] for field, name in columns.items() if name in row}


def get_format(name: str) -> Format:
    """A format by name.

    Raises:
        DataError: unknown name; the known ones are listed.
    """
    if name not in FORMATS:
        raise DataError(f"unknown format {name!r}; known formats: {', '.join(FORMATS)} (or auto)")
    return FORMATS[name]
