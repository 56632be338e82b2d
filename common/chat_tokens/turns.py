"""Which characters of a rendered conversation a model learns: exactly what it would have generated itself.

Upstream (``verl.utils.dataset.multiturn_sft_dataset.MultiTurnSFTDataset`` of verl 0.9.1) renders every turn alone
and joins the pieces. That stops with an AssertionError where a template looks at several turns (Qwen2.5 with two
tool results in a row, every Qwen3 conversation), unless ``ignore_input_ids_mismatch`` trains on a text that the
model never sees, and it learns the line break behind the end-of-turn token. Here the conversation is rendered as a
whole, as at inference, and an assistant turn is what follows the generation prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.data_utils.records import Message

Render = Callable[[list[Message], bool], str]


class TurnsError(ValueError):
    """A conversation that cannot be learned; the message says why."""


@dataclass(frozen=True)
class Rendered:
    """A text and the (start, end) character spans of it that are learned."""

    text: str
    spans: list[tuple[int, int]]


def renderer(tokenizer: Any, tools: Any, thinking: bool | None) -> Render:
    """The tokenizer's chat template as a function of (turns, add the generation prompt?)."""
    options = {} if thinking is None else {"enable_thinking": thinking}

    def render(turns: list[Message], generate: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=generate, **options
            )
        )

    return render


def learned(render: Render, turns: list[Message]) -> list[Rendered]:
    """The texts to learn from one conversation.

    Usually one text with a span per assistant turn. A template that rewrites history (Qwen3 removes the reasoning
    of earlier turns) shows the model another text at each turn: a turn that the whole text does not hold as it
    was generated becomes a text of its own, so every turn is learned in the context it will have.

    Raises:
        TurnsError: no assistant turn, nothing before one, or a template that the turns do not fit.
    """
    try:
        whole = render(turns, False)
        spans: list[tuple[int, int]] = []
        own: list[Rendered] = []
        for number, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            if number == 0:
                raise TurnsError("the conversation starts with the assistant: put a user turn before it")
            text = whole if number == len(turns) - 1 else render(turns[: number + 1], False)
            # White space behind the end-of-turn token is the template's, not the model's.
            span = _answer_start(render, turns[:number], text), len(text.rstrip())
            if span[0] >= span[1]:
                raise TurnsError(f"the chat template prints nothing of turn {number + 1} (assistant)")
            if whole.startswith(text):
                spans.append(span)
            else:
                own.append(Rendered(text, [span]))
    except TurnsError:
        raise
    except Exception as problem:  # templates raise their own errors for role orders they do not know
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise TurnsError(f"the chat template refuses it ({reason[:160]})") from None
    if not spans and not own:
        raise TurnsError("there is no assistant turn to learn from")
    return [*own, Rendered(whole, spans)] if spans else own


def _answer_start(render: Render, before: list[Message], text: str) -> int:
    """Where the answer begins: behind the generation prompt, or behind as much of it as the text shares.

    Some templates end the generation prompt with a forced ``<think>`` that a finished turn does not show.
    """
    prompt = render(before, True)
    if text.startswith(prompt):
        return len(prompt)
    shared = _shared(prompt, text)
    if shared <= _shared(render(before, False), text):
        raise TurnsError("the chat template changes the turns before an answer once the answer is there")
    return shared


def _shared(one: str, other: str) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def encode(tokenizer: Any, texts: list[Rendered]) -> list[tuple[list[int], list[int]]]:
    """(input_ids, loss_mask) of each text; the mask is 1 on tokens that begin inside a span.

    Args:
        tokenizer: a fast one; it reports where its tokens come from.
    """
    found = tokenizer(
        [item.text for item in texts], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    result = []
    for item, ids, offsets in zip(texts, found["input_ids"], found["offset_mapping"], strict=True):
        mask = [0] * len(ids)
        for start, end in item.spans:
            for place, (first, last) in enumerate(offsets):
                if start <= first < end and first < last:
                    mask[place] = 1
        result.append((ids, mask))
    return result
