"""One pure converter per source format.

A converter takes one row whose columns already carry their canonical names and returns a `Record`, or
raises `RowError`. It knows nothing of files, targets or other rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from common.data_utils import messages as chat
from common.data_utils.answers import is_missing
from common.data_utils.errors import RowError
from common.data_utils.records import Message, Plan, Record, Row

Convert = Callable[[Row, Plan], Record]


def with_system(turns: list[Message], system: Any) -> list[Message]:
    """Prepend the system message of a column of its own; a blank one is none.

    Raises:
        RowError: the conversation starts with another system message.
    """
    if system is None or is_missing(system):
        return turns
    text = chat.required_text(system, "system")
    if turns and turns[0]["role"] == "system":
        if turns[0]["content"] != text:
            raise RowError("system", "differs from the system message that the conversation starts with")
        return turns
    return [{"role": "system", "content": text}, *turns]


def split_last(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    """(prompt, response): the last assistant turn is the response, if the conversation ends with one."""
    if turns and turns[-1]["role"] == "assistant":
        return turns[:-1], turns[-1:]
    return turns, []


def _assistant(value: Any, field: str) -> list[Message]:
    return [{"role": "assistant", "content": chat.required_text(value, field)}]


def _user(value: Any, field: str) -> list[Message]:
    return [{"role": "user", "content": chat.required_text(value, field)}]


def _prompt_turns(value: Any, field: str) -> list[Message]:
    """A prompt column: plain text, an HH transcript, or messages (as such or as JSON text)."""
    if isinstance(value, str):
        if chat.is_chat(value):
            return chat.messages(value, field)
        if "\n\nHuman:" in value or value.startswith("Human:"):
            return chat.split_hh(value.removesuffix("\n\nAssistant:"), field)
        return _user(value, field)
    if isinstance(value, (list, dict)):
        return chat.messages(value, field)
    return _user(value, field)


def _history(value: Any) -> list[Message]:
    value = chat.unnest(value, "history")
    if is_missing(value):
        return []
    if not isinstance(value, list):
        raise RowError("history", "must be a list of [question, answer] pairs")
    turns: list[Message] = []
    for position, pair in enumerate(value):
        if isinstance(pair, dict):
            turns.append(chat.message(pair, f"history[{position}]"))
        elif isinstance(pair, list) and len(pair) == 2:
            turns += _user(pair[0], f"history[{position}]") + _assistant(pair[1], f"history[{position}]")
        else:
            raise RowError(f"history[{position}]", "must be a [question, answer] pair")
    return turns


def dialogue(field: str) -> Convert:
    """A converter for rows that keep a whole conversation in the column `field`."""

    def convert(row: Row, plan: Plan) -> Record:
        turns = with_system(chat.messages(row.get(field), field), row.get("system"))
        prompt, response = split_last(turns)
        return Record(
            prompt, response, tools=chat.tools(row.get("tools")), ground_truth=row.get("ground_truth")
        )

    return convert


def alpaca(row: Row, plan: Plan) -> Record:
    """instruction (+ input) and output, earlier turns in history; `output` of alpaca_ranked is a list."""
    text = chat.required_text(row.get("instruction"), "instruction")
    extra = row.get("input")
    if not is_missing(extra):
        text = f"{text}\n{chat.text_of(extra, 'input')}"
    turns = [*_history(row.get("history")), {"role": "user", "content": text}]
    prompt = with_system(turns, row.get("system"))
    if plan.format == "alpaca_ranked":
        return _ranked_record(prompt, _answer_list(row.get("output"), "output"), None, None, "output")
    return _answered(row, plan, prompt, row.get("output"), "output")


def query_history(row: Row, plan: Plan) -> Record:
    """query and response after a history of [question, answer] pairs."""
    turns = [*_history(row.get("history")), *_user(row.get("query"), "query")]
    return _answered(row, plan, with_system(turns, row.get("system")), row.get("response"), "response")


def _answered(row: Row, plan: Plan, prompt: list[Message], answer: Any, field: str) -> Record:
    """A prompt with one answer text; RL rows may come without the answer when they have a ground truth."""
    if is_missing(answer) and plan.task == "rl":
        response: list[Message] = []
    else:
        response = _assistant(answer, field)
    return Record(prompt, response, ground_truth=row.get("ground_truth"), tools=chat.tools(row.get("tools")))


def qa(row: Row, plan: Plan) -> Record:
    """question and answer; with a worked solution beside it, `answer` is the ground truth."""
    prompt = with_system(_user(row.get("question"), "question"), row.get("system"))
    solution = row.get("solution")
    if solution is None or is_missing(solution):
        return _answered(row, plan, prompt, row.get("answer"), "answer")
    # MATH-like rows: the worked solution is what a model should write, the answer what a reward compares.
    if is_missing(row.get("ground_truth")):
        row = {**row, "ground_truth": row.get("answer")}
    return _answered(row, plan, prompt, solution, "solution")


def prompt_response(row: Row, plan: Plan) -> Record:
    """prompt (text or messages) and response (text or messages)."""
    prompt = with_system(_prompt_turns(row.get("prompt"), "prompt"), row.get("system"))
    answer = row.get("response")
    if isinstance(answer, (list, dict)) or chat.is_chat(answer):
        turns = [*prompt, *chat.messages(answer, "response")]
        prompt, response = split_last(turns)
        return Record(
            prompt, response, tools=chat.tools(row.get("tools")), ground_truth=row.get("ground_truth")
        )
    return _answered(row, plan, prompt, answer, "response")


def verl_rl(row: Row, plan: Plan) -> Record:
    """verl's own RL schema."""
    prompt = with_system(chat.messages(row.get("prompt"), "prompt"), row.get("system"))
    judge = chat.unnest(row.get("reward_model"), "reward_model")
    if not isinstance(judge, dict):
        raise RowError(
            "reward_model", "is missing" if judge is None else "must be an object with ground_truth"
        )
    response: list[Message] = []
    if plan.task == "sft":
        extra = chat.unnest(row.get("extra_info"), "extra_info")
        answer = extra.get("answer") if isinstance(extra, dict) else None
        if is_missing(answer):
            raise RowError(
                "extra_info.answer", "is missing: an RL row can be used for sft only if it keeps its answer"
            )
        prompt, response = list(prompt), _assistant(answer, "extra_info.answer")
    return Record(prompt, response, ground_truth=judge.get("ground_truth"))


def _side(value: Any, field: str) -> str | list[Message]:
    """One answer of a pair: text, or messages in any dialect."""
    if isinstance(value, (list, dict)) or chat.is_chat(value):
        return chat.messages(value, field)
    text = chat.required_text(value, field)
    if text.lstrip("\n").startswith(("Human:", "Assistant:")) and "\n\nAssistant:" in text:
        return chat.split_hh(text, field)
    return text


def _common_prefix(one: list[Message], other: list[Message]) -> int:
    count = 0
    for left, right in zip(one[:-1], other[:-1], strict=False):
        if left != right:
            break
        count += 1
    return count


def _pair_prompt(row: Row) -> list[Message]:
    """The prompt of a preference row under any of its names; [] where only the two sides tell it."""
    for field in ("prompt", "conversations", "messages"):
        if not is_missing(row.get(field)):
            return _prompt_turns(row[field], field)
    for field in ("instruction", "question", "input"):
        if not is_missing(row.get(field)):
            text = chat.required_text(row[field], field)
            more = row.get("input") if field == "instruction" else None
            return _user(text if is_missing(more) else f"{text}\n{chat.text_of(more, 'input')}", field)
    return []


def preference(row: Row, plan: Plan) -> Record:
    """chosen and rejected, with a prompt given or implied by their common start."""
    chosen, rejected = _side(row.get("chosen"), "chosen"), _side(row.get("rejected"), "rejected")
    prompt = _pair_prompt(row)
    if isinstance(chosen, list) and isinstance(rejected, list) and (len(chosen) > 1 or len(rejected) > 1):
        shared = _common_prefix(chosen, rejected)
        if shared and chosen[0]["role"] != "assistant":
            # Whole conversations on both sides: their common start is the prompt, said twice if also given.
            implied = chosen[:shared]
            if prompt and [turn for turn in implied if turn["role"] != "system"][-len(prompt) :] != prompt:
                raise RowError("prompt", "differs from the start that chosen and rejected share")
            prompt, chosen, rejected = implied, chosen[shared:], rejected[shared:]
    left = chosen if isinstance(chosen, list) else _assistant(chosen, "chosen")
    right = rejected if isinstance(rejected, list) else _assistant(rejected, "rejected")
    for field, side in (("chosen", left), ("rejected", right)):
        if side[-1]["role"] != "assistant":
            raise RowError(field, f"ends with a {side[-1]['role']} turn; the answer must be the assistant's")
    if not prompt:
        raise RowError("prompt", "is missing: no prompt column, and chosen and rejected share no start")
    return Record(
        with_system(prompt, row.get("system")),
        left,
        rejected=right,
        tools=chat.tools(row.get("tools")),
        ground_truth=row.get("ground_truth"),
    )


def _score_of(value: Any, field: str) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        raise RowError(field, f"{value!r} is not a number") from None
    if math.isnan(score):
        raise RowError(field, "is not a number (NaN)")
    return score


def _ranked_record(
    prompt: list[Message], answers: list[Any], scores: Any, ranks: Any, field: str, truth: Any = None
) -> Record:
    """Best against worst of a list of answers; without scores or ranks the list counts as best first."""
    if len(answers) < 2:
        raise RowError(field, f"needs at least two answers, has {len(answers)}")
    texts: list[Any] = []
    found: list[Any] = []
    for answer in answers:
        if isinstance(answer, dict) and "role" not in answer and "from" not in answer:
            texts.append(
                next(
                    (
                        answer[key]
                        for key in ("response", "text", "content", "answer", "value")
                        if key in answer
                    ),
                    None,
                )
            )
            found.append(
                next(
                    (answer[key] for key in ("overall_score", "score", "rating", "reward") if key in answer),
                    None,
                )
            )
        else:
            texts.append(answer)
    order_by, sign = (scores, 1.0) if not is_missing(scores) else (ranks, -1.0)
    if is_missing(order_by) and found and all(value is not None for value in found):
        order_by, sign = found, 1.0
    if is_missing(order_by):
        values = [-float(position) for position in range(len(texts))]
    else:
        order_by = chat.unnest(order_by, "scores")
        if not isinstance(order_by, list) or len(order_by) != len(texts):
            raise RowError("scores", f"must be a list of {len(texts)} numbers, one per answer")
        values = [sign * _score_of(value, "scores") for value in order_by]
    best, worst = values.index(max(values)), values.index(min(values))
    if values[best] == values[worst]:
        raise RowError("scores", "are all equal: there is no better answer")
    sides = [_side(texts[best], f"{field}[{best}]"), _side(texts[worst], f"{field}[{worst}]")]
    left, right = [side if isinstance(side, list) else _assistant(side, field) for side in sides]
    return Record(prompt, left, rejected=right, ground_truth=truth)


def _answer_list(value: Any, field: str) -> list[Any]:
    answers = chat.unnest(value, field)
    if not isinstance(answers, list):
        raise RowError(field, "must be a list of answers")
    return answers


def ranked(row: Row, plan: Plan) -> Record:
    """One pair from a list of answers: the best and the worst."""
    answers = _answer_list(row.get("responses"), "responses")
    prompt = with_system(_prompt_turns(row.get("prompt"), "prompt"), row.get("system"))
    return _ranked_record(
        prompt, answers, row.get("scores"), row.get("ranks"), "responses", row.get("ground_truth")
    )
