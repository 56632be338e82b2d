"""One row as the model will see it: the template applied, the tokens, and which of them are learned."""

from __future__ import annotations

import contextlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data_utils.chunkwork import convert_items
from common.data_utils.errors import DataError
from common.data_utils.lengths import load_tokenizer, render
from common.data_utils.pipeline import plan_source
from common.data_utils.readers import iter_items
from common.data_utils.records import Options, Rejected, Row
from common.data_utils.sources import resolve
from common.data_utils.table import build
from common.data_utils.verl_rows import restore


@dataclass(frozen=True)
class View:
    """A token sequence. `mask[i]` is 1 where the model learns (sft, preference) and 0 where it only reads."""

    title: str
    ids: list[int]
    mask: list[int]


def find_row(src: str, number: int | None, task: str, options: Options) -> tuple[int, Row]:
    """(row number, training row) of a source row; None takes the first.

    Raises:
        DataError: no such row, or it cannot be converted.
    """
    resolved = resolve(src, options.split)
    plan = plan_source(resolved, task, options)
    for source in resolved.files:
        for place, item in iter_items(source, options.encoding, resolved.split):
            if number is not None and place != number:
                continue
            rejected: list[Rejected] = []
            rows, _ = convert_items([(place, item)], plan, source.label, rejected)
            if rejected:
                raise DataError(rejected[0].line())
            return place, rows[0]
    raise DataError(f"{src}: has no row {number} (rows count as docs/data.md says for its file type)")


def sft_view(row: Row, tokenizer: Any, ignore_mismatch: bool = False) -> View:
    """What verl's own SFT dataset makes of the row.

    Raises:
        DataError: verl would stop at this row; its reason is given.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from common.data_utils.verl_datasets import ToolsSFTDataset

    config: Any = {"pad_mode": "no_padding", "truncation": "error", "max_length": 10**9}
    config["ignore_input_ids_mismatch"] = ignore_mismatch
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.parquet"
        pq.write_table(pa.Table.from_batches([build([row])]), path)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # verl prints the size of the file
                item = ToolsSFTDataset([str(path)], tokenizer, config)[0]
        except Exception as problem:  # assertion of verl or an error of the template: both end a training run
            raise DataError(
                f"verl's SFT dataset refuses the row: {str(problem).strip() or type(problem).__name__}"
            ) from None
    return View("conversation", item["input_ids"].tolist(), item["loss_mask"].tolist())


def rl_view(row: Row, tokenizer: Any) -> View:
    """The prompt with the generation prompt, tokenized as verl's RLHFDataset and agent loop do."""
    ids = _ids(tokenizer, row["prompt"], None, True)
    return View("prompt", ids, [0] * len(ids))


def _ids(tokenizer: Any, turns: list[Row], tools: Any, generate: bool) -> list[int]:
    text = render(tokenizer, turns, tools, generate)
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def preference_views(row: Row, tokenizer: Any) -> list[View]:
    """Prompt + chosen and prompt + rejected; the answers are what the loss compares.

    Raises:
        DataError: the template does not continue the prompt, so that no boundary exists.
    """
    row = restore(row)
    views = []
    prompt = _ids(tokenizer, row["prompt"], row.get("tools"), True)
    for side in ("chosen", "rejected"):
        whole = _ids(tokenizer, row["prompt"] + row[side], row.get("tools"), False)
        if whole[: len(prompt)] != prompt:
            raise DataError(f"the chat template does not continue the prompt with the {side} answer")
        views.append(View(side, whole, [0] * len(prompt) + [1] * (len(whole) - len(prompt))))
    return views


def views_of(row: Row, task: str, tokenizer: Any, ignore_mismatch: bool = False) -> list[View]:
    """All token sequences of a training row."""
    if task == "sft":
        return [sft_view(row, tokenizer, ignore_mismatch)]
    if task == "rl":
        return [rl_view(row, tokenizer)]
    return preference_views(row, tokenizer)


def text_of(view: View, tokenizer: Any, colour: bool) -> str:
    """The text with learned stretches in green (or between [[ and ]] without colour)."""
    start, end = ("\x1b[32m", "\x1b[0m") if colour else ("[[", "]]")
    parts: list[str] = []
    position = 0
    while position < len(view.ids):
        stop = position
        while stop < len(view.ids) and view.mask[stop] == view.mask[position]:
            stop += 1
        text = tokenizer.decode(view.ids[position:stop], skip_special_tokens=False)
        parts.append(f"{start}{text}{end}" if view.mask[position] else text)
        position = stop
    return "".join(parts)


def tokens_of(view: View, tokenizer: Any, colour: bool) -> str:
    """One line per token: position, id, learned or not, text."""
    lines = []
    for position, (token, learned) in enumerate(zip(view.ids, view.mask, strict=True)):
        line = f"{position:6} {token:8} {'learn' if learned else '     '} {tokenizer.decode([token])!r}"
        lines.append(f"\x1b[32m{line}\x1b[0m" if colour and learned else line)
    return "\n".join(lines)


def show(
    src: str,
    task: str,
    tokenizer: str,
    options: Options,
    *,
    row: int | None = None,
    tokens: bool = False,
    colour: bool = False,
    ignore_mismatch: bool = False,
) -> tuple[dict[str, Any], str]:
    """(plain values, text) of one row as the model will see it.

    Args:
        row: number of the source row; None takes the first.
        tokens: list every token instead of running text.
        ignore_mismatch: verl's data.ignore_input_ids_mismatch, for templates that change earlier turns.

    Raises:
        DataError: no such row, it is not usable, or the template refuses it.
    """
    number, found = find_row(src, row, task, options)
    loaded = load_tokenizer(tokenizer)
    try:
        views = views_of(found, task, loaded, ignore_mismatch)
    except DataError:
        raise
    except Exception as problem:  # templates raise errors of their own
        raise DataError(f"{src}: row {number}: the chat template refuses it ({problem})") from None
    blocks = []
    for view in views:
        learned = f", {sum(view.mask)} learned" if task != "rl" else ""
        body = tokens_of(view, loaded, colour) if tokens else text_of(view, loaded, colour)
        blocks.append(f"--- row {number}: {view.title}: {len(view.ids)} tokens{learned}\n{body}")
    if task == "rl":
        truth = found["reward_model"]["ground_truth"]
        blocks.append(f"--- ground truth: {truth!r}, data_source {found['data_source']!r}")
    values = {
        "row": number,
        "training_row": found,
        "views": [{"title": view.title, "ids": view.ids, "mask": view.mask} for view in views],
    }
    return values, "\n".join(blocks)
