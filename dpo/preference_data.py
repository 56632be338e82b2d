"""Preference rows -> token ids: the chat template applied, every pair fit for training or named.

Rows are those of `common.data_utils` for the target `preference`: prompt, chosen and rejected as messages, and
tools. An answer is tokenized on its own behind its prompt, as the model meets it when it generates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from common.data_utils.lengths import numbered, render
from common.data_utils.verl_rows import restore

SIDES = ("chosen", "rejected")
_BATCH = 512
_NAMED = 5


class PreferenceDataError(Exception):
    """Pairs that cannot be trained on; the message has a line per kind, with the pairs and what to do."""


@dataclass(frozen=True)
class Limits:
    """What a pair may be.

    Attributes:
        max_length: tokens of a prompt with one answer.
        max_prompt_length: tokens of a prompt that `cut` leaves; below max_length.
        truncation: for longer pairs: "error" refuses them, "drop" leaves them out, "cut" takes the beginning off
            long prompts and the end off long answers.
        bad_rows: for pairs without anything to compare: "error" refuses them, "quarantine" leaves them out.
    """

    max_length: int
    max_prompt_length: int
    truncation: str = "error"
    bad_rows: str = "error"


@dataclass(frozen=True)
class Answer:
    """Tokens of one answer; `learned` is False for those the model does not say itself (tool results, users)."""

    ids: list[int]
    learned: list[bool]

    def cut(self, room: int) -> Answer:
        """The first `room` tokens."""
        return self if len(self.ids) <= room else Answer(self.ids[:room], self.learned[:room])


@dataclass(frozen=True)
class Pair:
    """One prompt and its two answers. `row` is the row of the Parquet file, from 1."""

    row: int
    prompt: list[int]
    chosen: Answer
    rejected: Answer

    @property
    def longest(self) -> int:
        """Tokens of the prompt with the longer answer."""
        return len(self.prompt) + max(len(self.chosen.ids), len(self.rejected.ids))

    @property
    def tokens(self) -> int:
        """Tokens of both conversations, the prompt counted twice."""
        return 2 * len(self.prompt) + len(self.chosen.ids) + len(self.rejected.ids)


@dataclass
class Pairs:
    """The pairs of a file that are trained on, and a line for each thing worth knowing about the others."""

    pairs: list[Pair]
    notes: list[str] = field(default_factory=list)


def _named(rows: list[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:_NAMED])
    return f"pair{'s' if len(rows) > 1 else ''} {shown}{', ...' if len(rows) > _NAMED else ''}"


class _Findings:
    """Rows by what is to be said about them."""

    def __init__(self) -> None:
        self.rows: dict[str, list[int]] = {}

    def add(self, what: str, row: int) -> None:
        self.rows.setdefault(what, []).append(row)

    def lines(self, what: str, total: int, then: str) -> list[str]:
        """A line if `what` was found: the count, its meaning, some rows, and what follows."""
        rows = self.rows.get(what)
        return [f"{len(rows)} of {total} pairs {what} ({_named(rows)}){then}"] if rows else []


def _alike(letters: tuple[str, ...]) -> bool:
    return len(set(letters)) == 1


def _pieces(tokenizer: Any, row: dict, side: str, head: str) -> list[tuple[str, bool]]:
    """(text, learned) stretches of an answer, behind `head`, the text of the prompt.

    Raises:
        PreferenceDataError: the template does not go on from what it printed before.
    """
    tools, turns = row.get("tools"), row["prompt"]
    pieces: list[tuple[str, bool]] = []
    done = head
    answer = row[side]
    for number, turn in enumerate(answer):
        last = number == len(answer) - 1
        own = turn["role"] == "assistant"
        opens = not last and answer[number + 1]["role"] == "assistant"
        text = render(tokenizer, [*turns, *answer[: number + 1]], tools, not own and opens)
        if own and opens:
            raise PreferenceDataError(f"{side}: two assistant turns follow each other")
        if not text.startswith(done):
            raise PreferenceDataError(
                f"{side}: the chat template prints what came before an answer differently once it is there (it drops "
                "earlier thinking, or rewrites turns), so the prompt has no end"
            )
        pieces.append((text[len(done) :], own))
        done = text
    return pieces


def render_pair(tokenizer: Any, row: dict) -> tuple[str, dict[str, list[tuple[str, bool]]], str]:
    """The texts of a pair: the prompt, the pieces of both answers, and the end of the prompt that was left out.

    Some templates open the assistant's turn with text that they do not print before an answer that is there, such
    as `<think>`. What both answers do not continue is left out of the prompt and returned.

    Raises:
        PreferenceDataError: the template refuses the row, or does not continue the prompt with its answers.
    """
    tools = row.get("tools")
    try:
        head = render(tokenizer, row["prompt"], tools, True)
        whole = [render(tokenizer, row["prompt"] + row[side][:1], tools, False) for side in SIDES]
        bare = render(tokenizer, row["prompt"], tools, False)
        start = head
        if not all(text.startswith(head) for text in whole):
            start = "".join(letters[0] for letters in takewhile(_alike, zip(head, *whole, strict=False)))
            if len(start) < len(bare) or not head.startswith(bare):
                raise PreferenceDataError(
                    "the chat template prints the prompt differently when an answer follows, so it has no end"
                )
        return start, {side: _pieces(tokenizer, row, side, start) for side in SIDES}, head[len(start) :]
    except PreferenceDataError:
        raise
    except Exception as problem:  # templates raise errors of their own for role orders they do not know
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise PreferenceDataError(f"the chat template refuses it: {reason}") from None


def _read(path: str | Path, every: int) -> Iterator[tuple[int, dict]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        missing = [name for name in ("prompt", *SIDES) if name not in file.schema_arrow.names]
        if missing:
            raise PreferenceDataError(
                f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} (found: "
                f"{', '.join(file.schema_arrow.names)}): convert it with python -m common.data_utils convert "
                "--task preference"
            )
    for batch in numbered(Path(path), every):
        for number, row in batch:
            yield number, restore(row)


def _answer(ids: Iterator[list[int]], pieces: list[tuple[str, bool]]) -> Answer:
    found: list[int] = []
    learned: list[bool] = []
    for _, own in pieces:
        tokens = next(ids)
        found += tokens
        learned += [own] * len(tokens)
    return Answer(found, learned)


def tokenize(path: str | Path, tokenizer: Any, findings: _Findings, every: int = 1) -> list[Pair]:
    """All pairs (each *every*-th) of a Parquet file that the template accepts, in the file's order."""
    pairs: list[Pair] = []
    waiting: list[tuple[int, dict[str, list[tuple[str, bool]]]]] = []
    texts: list[str] = []

    def flush() -> None:
        if not waiting:
            return
        ids = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
        pairs.extend(
            Pair(number, next(ids), _answer(ids, sides["chosen"]), _answer(ids, sides["rejected"]))
            for number, sides in waiting
        )
        waiting.clear()
        texts.clear()

    for number, row in _read(path, every):
        try:
            head, sides, left_out = render_pair(tokenizer, row)
        except PreferenceDataError as problem:
            findings.add(f"cannot be used: {problem}", number)
            continue
        if left_out:
            findings.add(
                f"have answers that do not continue {left_out!r}, with which the prompt ends", number
            )
        waiting.append((number, sides))
        texts += [head, *(text for side in SIDES for text, _ in sides[side])]
        if len(waiting) == _BATCH:
            flush()
    flush()
    return pairs


def _fit(pair: Pair, limits: Limits) -> Pair:
    prompt = pair.prompt[-limits.max_prompt_length :]
    room = limits.max_length - len(prompt)
    return Pair(pair.row, prompt, pair.chosen.cut(room), pair.rejected.cut(room))


_SAME = "have the same tokens on both sides"
_SAME_CUT = "have the same tokens on both sides once they are cut"
_EMPTY = "have an answer without a token to learn"


def _usable(pair: Pair, whole: Pair, findings: _Findings) -> bool:
    if not (any(pair.chosen.learned) and any(pair.rejected.learned)):
        findings.add(_EMPTY, pair.row)
        return False
    if pair.chosen.ids == pair.rejected.ids:
        findings.add(_SAME if whole.chosen.ids == whole.rejected.ids else _SAME_CUT, pair.row)
        return False
    return True


def load_pairs(path: str | Path, tokenizer: Any, limits: Limits, every: int = 1) -> Pairs:
    """The pairs of a Parquet file, within the limits.

    Args:
        every: look at each *every*-th row only.

    Raises:
        PreferenceDataError: pairs that the policies do not allow to leave out or cut, or none is left.
    """
    findings = _Findings()
    read = tokenize(path, tokenizer, findings, every)
    unusable = [what for what in findings.rows if what.startswith("cannot be used")]
    total = len(read) + sum(len(findings.rows[what]) for what in unusable)
    too_long = f"are longer than MAX_LENGTH={limits.max_length} tokens"
    long_prompt = f"have a prompt longer than MAX_PROMPT_LENGTH={limits.max_prompt_length} tokens"
    kept = []
    for whole in read:
        pair = whole
        if whole.longest > limits.max_length or len(whole.prompt) > limits.max_prompt_length:
            findings.add(too_long if whole.longest > limits.max_length else long_prompt, whole.row)
            if limits.truncation != "cut":
                continue
            pair = _fit(whole, limits)
        if _usable(pair, whole, findings):
            kept.append(pair)
    _duplicates(kept, findings)

    longest = max((pair.longest for pair in read), default=0)
    refused = f"; the longest has {longest}: raise the limit, or choose TRUNCATION=cut or drop"
    then = {"error": refused, "drop": ": left out", "cut": ": cut"}[limits.truncation]
    long_lines = [line for what in (too_long, long_prompt) for line in findings.lines(what, total, then)]
    bad = (
        "; mend them, or leave them out with BAD_ROWS=quarantine"
        if limits.bad_rows == "error"
        else ": left out"
    )
    bad_lines = [
        line for what in (*unusable, _EMPTY, _SAME, _SAME_CUT) for line in findings.lines(what, total, bad)
    ]
    problems = (long_lines if limits.truncation == "error" else []) + (
        bad_lines if limits.bad_rows == "error" else []
    )
    if problems:
        raise PreferenceDataError("\n".join(f"{path}: {line}" for line in problems))
    if not kept:
        raise PreferenceDataError(f"{path}: no pair of {total} is left to train on: raise MAX_LENGTH")
    others = [what for what in findings.rows if what not in (too_long, long_prompt, _EMPTY, _SAME, _SAME_CUT)]
    notes = [line for what in others if what not in unusable for line in findings.lines(what, total, "")]
    return Pairs(kept, long_lines + bad_lines + notes)


def _duplicates(pairs: list[Pair], findings: _Findings) -> None:
    seen: dict[tuple, int] = {}
    for pair in pairs:
        sides = tuple(pair.chosen.ids), tuple(pair.rejected.ids)
        key = (tuple(pair.prompt), *sides)
        if key in seen:
            findings.add("say again what an earlier pair says", pair.row)
        elif (key[0], *reversed(sides)) in seen:
            findings.add(
                "say the opposite of an earlier pair: the same two answers, the other one chosen", pair.row
            )
        seen.setdefault(key, pair.row)


def check_limits(limits: Limits) -> list[str]:
    """What is wrong with the limits, a line each."""
    if limits.max_length < 2:
        return [f"MAX_LENGTH={limits.max_length} must be 2 or more tokens: a prompt and an answer"]
    if not 0 < limits.max_prompt_length < limits.max_length:
        return [
            f"MAX_PROMPT_LENGTH={limits.max_prompt_length} must be above 0 and below MAX_LENGTH={limits.max_length}, "
            "so that every answer keeps some room"
        ]
    return []
