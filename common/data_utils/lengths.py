"""Token counts of training rows under the run's tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data_utils.errors import DataError
from common.data_utils.records import Message, Row
from common.data_utils.verl_rows import restore, restore_turns

_BATCH = 256
SAMPLE = 1024
EXACT_UP_TO = 20_000


def stride(rows: int) -> int:
    """Every how many rows are looked at where a sample will do: all up to `EXACT_UP_TO`, else about 4 x `SAMPLE`."""
    return rows // (4 * SAMPLE) if rows > EXACT_UP_TO else 1


def numbered(path: Path, every: int, columns: list[str] | None = None) -> Iterator[list[tuple[int, Row]]]:
    """(row number from 1, stored row) of each *every*-th row of a Parquet file, batch by batch."""
    import pyarrow.parquet as pq

    position = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
            taken = range(-position % every, len(batch), every)
            rows = (batch if every == 1 else batch.take(list(taken))).to_pylist() if taken else []
            yield [(position + place + 1, row) for place, row in zip(taken, rows, strict=True)]
            position += len(batch)


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


@dataclass(frozen=True)
class Lengths:
    """Tokens of the prompt and of the whole row (of the longer side for pairs).

    `unseen` are tools of the row that the template does not print: the model would never see them.
    """

    prompt: int
    whole: int
    unseen: tuple[str, ...] = ()


def texts_of(tokenizer: Any, row: Row, task: str) -> list[str]:
    """[prompt, whole] of a stored row as texts; two wholes for preference.

    For rl the whole is the prompt: the answer is yet to be generated.
    """
    tools = row.get("tools") if task != "rl" else None
    if task == "sft":
        turns = row["messages"]
        ends = turns[-1]["role"] == "assistant"
        prompt = render(tokenizer, turns[:-1], tools, True) if ends and len(turns) > 1 else ""
        return [prompt, render(tokenizer, turns, tools, False)]
    prompt = render(tokenizer, row["prompt"], tools, True)
    if task == "rl":
        return [prompt, prompt]
    return [
        prompt,
        *(render(tokenizer, row["prompt"] + row[side], tools, False) for side in ("chosen", "rejected")),
    ]


def _tool_names(row: Row) -> set[str]:
    """Names of the tools that a row offers or calls."""
    names = {tool["function"]["name"] for tool in row.get("tools") or []}
    for column in ("messages", "prompt", "chosen", "rejected"):
        for turn in row.get(column) or []:
            names.update(call["function"]["name"] for call in turn.get("tool_calls") or [])
    return names


def count(tokenizer: Any, rows: Sequence[Row], task: str) -> list[Lengths | str]:
    """Token counts per stored row, or the reason why the chat template refuses it."""
    texts: list[str] = []
    places: list[tuple[int, int, tuple[str, ...]] | str] = []
    for stored in rows:
        row = restore(stored)
        try:
            found = texts_of(tokenizer, row, task)
        except Exception as problem:  # templates raise their own errors for role orders they do not know
            places.append((str(problem).strip() or type(problem).__name__).splitlines()[0])
            continue
        unseen = sorted(name for name in _tool_names(row) if name not in found[-1]) if task != "rl" else []
        places.append((len(texts), len(texts) + len(found), tuple(unseen)))
        texts += found
    tokens = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    sizes = [len(ids) for ids in tokens]
    return [
        place
        if isinstance(place, str)
        else Lengths(sizes[place[0]], max(sizes[place[0] + 1 : place[1]]), place[2])
        for place in places
    ]


def overlong(
    path: Path, task: str, tokenizer: str, max_prompt: int | None, most: int | None
) -> dict[str, int]:
    """How many rows of a training file exceed the limits.

    Of an RL file of more than `EXACT_UP_TO` rows a sample is looked at, and all rows when one of it is over the limit
    or refused.

    Returns:
        rows (looked at), over_prompt, over_length, refused (by the template), longest_prompt, longest; for rl with a
        limit also what `prompt_lengths` adds.
    """
    import pyarrow.parquet as pq

    loaded = load_tokenizer(tokenizer)
    if task == "rl" and max_prompt is not None:
        every = stride(pq.read_metadata(path).num_rows)
        counts = prompt_lengths(path, loaded, max_prompt, every)
        if every > 1 and (counts["over_prompt"] or counts["refused"]):
            counts = prompt_lengths(path, loaded, max_prompt)
        return {**counts, "over_length": 0, "longest": counts["longest_prompt"]}
    result = dict.fromkeys(("rows", "over_prompt", "over_length", "refused", "longest_prompt", "longest"), 0)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH):
            for found in count(loaded, batch.to_pylist(), task):
                result["rows"] += 1
                if isinstance(found, str):
                    result["refused"] += 1
                    continue
                result["over_prompt"] += max_prompt is not None and found.prompt > max_prompt
                result["over_length"] += most is not None and found.whole > most
                result["longest_prompt"] = max(result["longest_prompt"], found.prompt)
                result["longest"] = max(result["longest"], found.whole)
    return result


def prompt_lengths(path: Path, tokenizer: Any, max_prompt: int, every: int = 1) -> dict[str, int]:
    """Prompts of an RL file against the limit, and how long they are.

    A prompt of ASCII text has no more tokens than characters (and a prefix), so one that is shorter than the limit is
    not tokenized; a sample of about `SAMPLE` rows, evenly spread, is in any case.

    Args:
        every: look at each *every*-th row only.

    Returns:
        rows, over_prompt, refused (by the template): exact for the rows looked at; longest_prompt: exact when one is
        over the limit, else of those tokenized; sampled, median, p95: of the sample.
    """
    import pyarrow.parquet as pq

    result = dict.fromkeys(("rows", "over_prompt", "refused", "longest_prompt"), 0)
    sample: list[int] = []
    waiting: list[tuple[str, bool]] = []

    def tokenize() -> None:
        tokens = tokenizer([text for text, _ in waiting], add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        for ids, (_, drawn) in zip(tokens, waiting, strict=True):
            result["over_prompt"] += len(ids) > max_prompt
            result["longest_prompt"] = max(result["longest_prompt"], len(ids))
            if drawn:
                sample.append(len(ids))
        waiting.clear()

    step = max(1, pq.read_metadata(path).num_rows // every // SAMPLE)
    for batch in numbered(path, every, ["prompt"]):
        for text in _texts(tokenizer, [restore_turns(row["prompt"]) for _, row in batch]):
            result["rows"] += 1
            result["refused"] += text is None
            drawn = (result["rows"] - 1) % step == 0
            if text is not None and (drawn or not text.isascii() or len(text) >= max_prompt):
                waiting.append((text, drawn))
        if len(waiting) >= SAMPLE:
            tokenize()
    if waiting:
        tokenize()
    sample.sort()
    last = len(sample) - 1
    return {
        **result,
        "sampled": len(sample),
        "median": sample[last // 2] if sample else 0,
        "p95": sample[last * 95 // 100] if sample else 0,
    }


def _texts(tokenizer: Any, prompts: list[list[Message]]) -> list[str | None]:
    """What the template makes of each prompt, ready for the answer; None where it refuses one."""
    try:
        return list(tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True))
    except Exception:  # templates raise their own errors for role orders they do not know
        return [_text(tokenizer, prompt) for prompt in prompts]


def _text(tokenizer: Any, prompt: list[Message]) -> str | None:
    try:
        return render(tokenizer, prompt, None, True)
    except Exception:
        return None
