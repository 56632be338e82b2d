"""verl's three row schemas, stated once: how a record becomes a training row, and what makes it unfit."""

from __future__ import annotations

from typing import Any

from common.data_utils import formats
from common.data_utils import messages as chat
from common.data_utils.answers import extract_answer, is_missing, truth_text
from common.data_utils.errors import RowError
from common.data_utils.records import Message, Plan, Record, Row

# Columns that verl's datasets read beside the messages.
MEDIA = ("images", "videos", "audios")


def _with_media(result: Row, source: Row) -> Row:
    """Pass on the media that the placeholders <image>, <video>, <audio> of the messages stand for."""
    for name in MEDIA:
        if source.get(name):
            result[name] = source[name]
    return result


def _system(turns: list[Message], plan: Plan) -> list[Message]:
    if plan.options.system_prompt and turns[0]["role"] != "system":
        return [{"role": "system", "content": plan.options.system_prompt}, *turns]
    return turns


def to_sft(record: Record, row: Row, source: Row, plan: Plan) -> Row:
    """{"messages": [...]} and, where the row has them, "tools" (JSON text) and "enable_thinking".

    Raises:
        RowError: no assistant turn, so nothing to learn from.
    """
    turns = [*record.prompt, *record.response]
    if not record.response and not any(turn["role"] == "assistant" for turn in turns):
        raise RowError("messages", "has no assistant turn to learn from")
    if record.response and not any(turn["role"] == "user" for turn in record.prompt):
        raise RowError("messages", "has no user turn before the answer")
    result: Row = {"messages": _system(turns, plan)}
    if record.tools:
        result["tools"] = chat.dump_json(record.tools)
    thinking = row.get("enable_thinking")
    if thinking is not None:
        if not isinstance(thinking, bool):
            raise RowError("enable_thinking", "must be true or false")
        result["enable_thinking"] = thinking
    return _with_media(result, source)


def _extras(record: Record, row: Row, source: Row, plan: Plan) -> Row:
    """What the source row holds beyond verl's schema, for `extra_info`."""
    result: Row = {}
    given = row.get("extra_info")
    if given is not None and not is_missing(given):
        given = chat.unnest(given, "extra_info")
        if not isinstance(given, dict):
            raise RowError("extra_info", "must be an object")
        result.update(given)
    if not plan.used.issuperset(source):
        for name, value in source.items():
            if name not in plan.used and name not in result and name not in MEDIA:
                result[name] = value
    if plan.extract and record.response and is_missing(row.get("ground_truth")):
        result.setdefault("answer", record.response[-1]["content"])
    if record.tools:
        result["tools"] = chat.dump_json(record.tools)
    return result


def _ground_truth(record: Record, plan: Plan) -> Any:
    truth = record.ground_truth
    if plan.format == "verl" and isinstance(truth, (list, dict)) and truth:
        return truth  # verl's own rows may carry structured truths for rewards written for them
    if is_missing(truth) and record.response:
        text = record.response[-1]["content"]
        truth = extract_answer(text) if plan.extract else text
        if truth is None and plan.options.ground_truth == "required":
            raise RowError(
                "answer", "has neither '#### x' on its last line nor \\boxed{x}, unlike the other rows"
            )
    if is_missing(truth) and plan.options.ground_truth == "optional":
        return ""
    return truth_text(truth)


def _reward_model(row: Row, truth: Any, plan: Plan) -> Row:
    style = "model" if truth == "" else "rule"
    if plan.format != "verl":
        return {"style": style, "ground_truth": truth}
    own = chat.unnest(row["reward_model"], "reward_model")
    return {**own, "style": own.get("style") or style, "ground_truth": truth}


def apply_template(turns: list[Message], template: str) -> list[Message]:
    """Put the last user message into `template` in place of {question} or {prompt}; other braces stay."""
    last = max(position for position, turn in enumerate(turns) if turn["role"] == "user")
    content = turns[last]["content"]
    wrapped = (
        template.replace("{question}", content)
        if "{question}" in template
        else template.replace("{prompt}", content)
    )
    return [*turns[:last], {**turns[last], "content": wrapped}, *turns[last + 1 :]]


def to_rl(record: Record, row: Row, source: Row, plan: Plan) -> Row:
    """data_source, prompt, ability, reward_model, extra_info (index is added when rows are counted).

    Raises:
        RowError: no user turn, tool calls in the prompt, or no ground truth where one is required.
    """
    prompt = record.prompt
    if len(prompt) != 1 or prompt[0]["role"] != "user":
        if not any(turn["role"] == "user" for turn in prompt):
            raise RowError("prompt", "has no user turn")
        if any("tool_calls" in turn or turn["role"] == "tool" for turn in prompt):
            raise RowError(
                "prompt", "holds tool calls; verl's RL prompts are text (tools run during the rollout)"
            )
        if prompt[-1]["role"] == "assistant":
            raise RowError("prompt", "ends with an assistant turn; the model must speak next")
        prompt = [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
    if plan.options.prompt_template:
        prompt = apply_template(prompt, plan.options.prompt_template)
    truth = _ground_truth(record, plan)
    extra = _extras(record, row, source, plan)
    extra.setdefault("split", plan.split)
    result: Row = {
        "data_source": _label(row, "data_source", plan.data_source),
        "prompt": _system(prompt, plan),
        "ability": _label(row, "ability", plan.ability),
        "reward_model": _reward_model(row, truth, plan),
        "extra_info": extra,
    }
    agent = _label(row, "agent_name", plan.options.agent_name)
    if agent:
        result["agent_name"] = agent
    return _with_media(result, source)


def _label(row: Row, field: str, default: str) -> str:
    value = row.get(field)
    if value is None or is_missing(value):
        return default
    return chat.required_text(value, field)


def to_preference(record: Record, row: Row, plan: Plan) -> Row:
    """{"prompt": [...], "chosen": [...], "rejected": [...]} as messages, and "tools" (JSON text) if any.

    Raises:
        RowError: a side is missing, or both sides say the same.
    """
    if not record.rejected or not record.response:
        raise RowError("rejected", "is missing: preference rows need a chosen and a rejected answer")
    if record.rejected == record.response:
        raise RowError("rejected", "is the same as chosen: there is nothing to prefer")
    if not any(turn["role"] == "user" for turn in record.prompt):
        raise RowError("prompt", "has no user turn")
    result: Row = {
        "prompt": _system(record.prompt, plan),
        "chosen": record.response,
        "rejected": record.rejected,
    }
    if record.tools:
        result["tools"] = chat.dump_json(record.tools)
    return result


def convert_row(source: Row, plan: Plan) -> Row:
    """One source row -> one training row: the single statement of what a conversion does.

    Raises:
        RowError: the row is unfit; field and reason are named.
    """
    row = source if plan.same_names else formats.rename(source, plan.columns)
    record = formats.FORMATS[plan.format].convert(row, plan)
    if plan.task == "rl":
        return to_rl(record, row, source, plan)
    if plan.task == "sft":
        return to_sft(record, row, source, plan)
    return to_preference(record, row, plan)


def prompt_text(row: Row) -> str:
    """What must not stand in both train and validation: the prompt of a training row, as one text."""
    turns = row.get("prompt")
    if turns is None:
        turns = row["messages"]
        turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\x1e".join([turn["role"] + "\x1f" + turn["content"] for turn in turns])
