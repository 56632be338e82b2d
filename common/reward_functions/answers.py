"""Find the final answer in a model's response: pure string work, linear time, no backtracking regex."""

from __future__ import annotations

import re
from dataclasses import dataclass

from common.reward_functions.numbers import parse_number
from common.reward_functions.units import leading_unit

_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)[ \t\n]{0,4}(?:(\{)|(?=\d)|[ \t](?=\S))|\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_PHRASE = re.compile(
    r"(?:final answer|answer|最终答案|正确答案|答案|结果)[ \t]{0,4}(?:\*\*)?[ \t]{0,4}"
    r"(?:(?:is|=|:|：|为|是|應為|应为|等于)[ \t]{0,4}){1,3}(?:\*\*)?|(?:所以|故|应|因此)选[:：]?",
    re.IGNORECASE,
)
# Lengths are bounded so that unclosed marks cannot make the search quadratic.
_DOLLARS = re.compile(
    r"\$\$([^$]{1,2000})\$\$|\$([^$\n]{1,2000})\$|\\\((.{1,500}?)\\\)|\\\[(.{1,500}?)\\\]", re.DOTALL
)
_WORD = re.compile(r"(?<!\\)\b[A-Za-z]{3,}")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_DIGIT = re.compile(r"\d")
_BRACKET_OR_END = re.compile(r"[(\[{（【)\]}）】]|\.(?=\s|$)|[。；;！!]|\*\*|,\s(?=[a-z])|，")
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])[-+−]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:/\d+)?(?:[eE][-+]?\d+)?%?"
)


@dataclass(frozen=True)
class Found:
    """An answer and the mark it was found by: boxed, tag, hashes, phrase, math, number or line."""

    text: str
    how: str


def after_thinking(response: str) -> str:
    """What follows the thinking; an unclosed `<think>` hides everything behind it (a cut-off answer)."""
    end = response.rfind("</think>")
    if end >= 0:
        response = response[end + len("</think>") :]
    start = response.find("<think>")
    return response if start < 0 else response[:start]


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete `\boxed{...}`, braces balanced; of a box inside it where there is one."""
    best: str | None = None
    braces: list[bool] = []  # whether each open brace opens a box
    boxes: list[
        tuple[int, str | None]
    ] = []  # start of each open box, and the answer of the last box inside it
    for match in _BOX_OR_BRACE.finditer(text):
        token = match.group()
        if match.group(1):
            braces.append(True)
            boxes.append((match.end(), None))
        elif token == "{":
            braces.append(False)
        elif token == "}" and braces:
            if braces.pop():
                start, inner = boxes.pop()
                best = text[start : match.start()].strip() if inner is None else inner
                if boxes:
                    boxes[-1] = (boxes[-1][0], best)
        elif token.startswith((r"\boxed", r"\fbox")):
            best = text[match.end() : match.end() + 40].replace("$", " ").split()[0]
    return best


def enclosed(text: str, start: str, end: str) -> list[str]:
    """Every part of `text` between the two marks, in one pass."""
    parts, position = [], 0
    while (opened := text.find(start, position)) >= 0:
        closed = text.find(end, opened)
        if closed < 0:
            break
        parts.append(text[opened + len(start) : closed])
        position = closed
    return parts


def last_number(text: str) -> str | None:
    """The last number in the text, thousands commas kept."""
    found = _last_match(text)
    return None if found is None else found.group()


def _last_match(text: str) -> re.Match[str] | None:
    matches = list(_NUMBER.finditer(text))
    return matches[-1] if matches else None


def final_answer(response: str) -> Found | None:
    r"""The answer a reader would take from a response.

    In this order, each time the last one: `\boxed{}`, `<answer>`, `#### x`, "the answer is x" / 答案是 x,
    the last formula, the last number; a response of one short line is its own answer.
    """
    text = after_thinking(response)
    tags = enclosed(text, "<answer>", "</answer>")
    if tags:
        inside = last_boxed(tags[-1])
        return Found(inside if inside is not None else tags[-1].strip(), "tag")
    boxed = last_boxed(text)
    if boxed is not None:
        return Found(boxed, "boxed")
    hashes = _HASHES.findall(text)
    if hashes:
        return Found(hashes[-1].strip(), "hashes")
    for match in reversed(list(_PHRASE.finditer(text))):
        line = text[match.end() : match.end() + 2000].split("\n", 1)[0].strip()
        if line.strip(" .。*"):
            return Found(_first_statement(line), "phrase")
    stripped = text.strip()
    if _is_bare(stripped):
        return Found(stripped, "line")
    formulas = [next(part for part in groups if part) for groups in _DOLLARS.findall(text)]
    if formulas:
        last = formulas[-1].strip()
        return Found(last.rsplit("=", 1)[-1].strip() if _is_chain(last) else last, "math")
    number = _last_match(text)
    if number is None:
        return None
    unit = leading_unit(text[number.end() : number.end() + 20])
    return Found(f"{number.group()} {unit}".rstrip(), "number")


def _is_chain(formula: str) -> bool:
    return "=" in formula and not any(sign in formula for sign in (r"\neq", r"\leq", r"\geq", "<=", ">="))


def _is_bare(text: str) -> bool:
    """Whether a response is nothing but an answer: one short line that is no sentence around a number."""
    if not text or "\n" in text or len(text) > 80 or len(_WORD.findall(text)) > 1:
        return False
    return (
        "=" in text or not (_CHINESE.search(text) and _DIGIT.search(text)) or parse_number(text) is not None
    )


def _first_statement(text: str) -> str:
    """`text` up to the end of its first sentence; brackets and the dot inside a number do not end one."""
    formula = _DOLLARS.match(text)
    if formula:
        return next(part for part in formula.groups() if part).strip()
    depth = 0
    for match in _BRACKET_OR_END.finditer(text):
        mark = match.group()
        if mark in "([{（【":
            depth += 1
        elif mark in ")]}）】":
            depth -= 1
        elif depth <= 0:
            return text[: match.start()].strip().strip("*").strip()
    return text.strip().strip("*").strip()
