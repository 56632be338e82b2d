"""Token counts of training rows under the run's tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from common.data_utils.errors import DataError
from common.data_utils.records import Message, Row
from common.data_utils.verl_rows import restore

_BATCH = 256


def load_tokenizer(name: str) -> Any:
    """A tokenizer with a chat template, from a folder, a hub id, or `smollm2` (the small model for CPUs).

    Raises:
        DataError: it cannot be loaded or has no chat template.
    """
    if name == "smollm2":
        from common.cpu.model import resolve_model_path

        name = str(resolve_model_path(name))
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as problem:  # missing folders, networks and broken files raise many types
        first = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise DataError(f"tokenizer {name}: cannot be loaded ({first[:200]})") from None
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"tokenizer {name}: has no chat template; use the instruct model, or add a template to it"
        )
    return tokenizer


def render(tokenizer: Any, turns: list[Message], tools: Any, generate: bool) -> str:
    """The text that the template makes of messages."""
    return str(
        tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=generate)
    )


def texts_of(tokenizer: Any, row: Row, task: str) -> tuple[str, str]:
    """(prompt, longest whole) of a stored row as texts: sft and rl have one whole, preference two.

    For rl the whole is the prompt: the answer is yet to be generated.
    """
    row = restore(row)
    tools = row.get("tools") if task != "rl" else None
    if task == "sft":
        turns = row["messages"]
        ends = turns[-1]["role"] == "assistant"
        prompt = render(tokenizer, turns[:-1], tools, True) if ends and len(turns) > 1 else ""
        return prompt, render(tokenizer, turns, tools, False)
    prompt = render(tokenizer, row["prompt"], tools, True)
    if task == "rl":
        return prompt, prompt
    wholes = [render(tokenizer, row["prompt"] + row[side], tools, False) for side in ("chosen", "rejected")]
    return prompt, max(wholes, key=len)


def count(tokenizer: Any, rows: Sequence[Row], task: str) -> list[tuple[int, int] | str]:
    """(prompt tokens, whole tokens) per row, or the reason why the chat template refuses it."""
    texts: list[str] = []
    places: list[int | str] = []
    for row in rows:
        try:
            pair = texts_of(tokenizer, row, task)
        except Exception as problem:  # templates raise their own errors for role orders they do not know
            places.append((str(problem).strip() or type(problem).__name__).splitlines()[0])
            continue
        places.append(len(texts))
        texts += pair
    tokens = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    lengths = [len(ids) for ids in tokens]
    return [place if isinstance(place, str) else (lengths[place], lengths[place + 1]) for place in places]


def batched(rows: Iterable[Any], size: int = _BATCH) -> Iterable[list[Any]]:
    """Lists of at most `size`."""
    iterator = iter(rows)
    while group := list(islice(iterator, size)):
        yield group


def overlong(
    path: Path, task: str, tokenizer: str, max_prompt: int | None, most: int | None
) -> dict[str, int]:
    """How many rows of a training file exceed the limits.

    Returns:
        rows, over_prompt, over_length, refused (by the template), longest_prompt, longest.
    """
    import pyarrow.parquet as pq

    loaded = load_tokenizer(tokenizer)
    result = dict.fromkeys(("rows", "over_prompt", "over_length", "refused", "longest_prompt", "longest"), 0)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH):
            for found in count(loaded, batch.to_pylist(), task):
                result["rows"] += 1
                if isinstance(found, str):
                    result["refused"] += 1
                    continue
                prompt, whole = found
                result["over_prompt"] += max_prompt is not None and prompt > max_prompt
                result["over_length"] += most is not None and whole > most
                result["longest_prompt"] = max(result["longest_prompt"], prompt)
                result["longest"] = max(result["longest"], whole)
    return result
