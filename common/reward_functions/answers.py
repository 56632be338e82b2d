"""Find the final answer in a model's response: pure string work, linear time, no backtracking regex."""

from __future__ import annotations

import re
from dataclasses import dataclass

from common.reward_functions.numbers import parse_number

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{|(?=[\s\d]))")
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_PHRASE = re.compile(
    r"(?:final answer|answer|最终答案|正确答案|答案|结果)\s*(?:\*\*)?\s*"
    r"(?:is|=|:|：|为|是|應為|应为|等于)+\s*:?\s*(?:\*\*)?[ \t]*|(?:所以|故|应|因此)选[:：]?\s*",
    re.IGNORECASE,
)
_DOLLARS = re.compile(r"\$\$([^$]+)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
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
    r"""Content of the last complete `\boxed{...}`, braces balanced; boxes inside it are opened too."""
    best: str | None = None
    position = 0
    while (match := _BOX.search(text, position)) is not None:
        position = match.end()
        if match.group(1) != "{":
            bare = text[match.end() :].split("\n")[0].replace("$", " ").split()
            best = bare[0] if bare else None
            continue
        close = _closing(text, match.end())
        if close is None:
            continue
        best = text[match.end() : close]
        position = close
    if best is None:
        return None
    inner = last_boxed(best)
    return best.strip() if inner is None else inner


def _closing(text: str, start: int) -> int | None:
    depth = 1
    index = start
    while index < len(text):
        char = text[index]
        if char == "\\":
            index += 2
            continue
        if char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return index
        index += 1
    return None


def last_number(text: str) -> str | None:
    """The last number in the text, thousands commas kept."""
    found = None
    for match in _NUMBER.finditer(text):
        found = match.group()
    return found


def final_answer(response: str) -> Found | None:
    r"""The answer a reader would take from a response.

    In this order, each time the last one: `\boxed{}`, `<answer>`, `#### x`, "the answer is x" / 答案是 x,
    the last formula, the last number; a response of one short line is its own answer.
    """
    text = after_thinking(response)
    tags = _ANSWER_TAG.findall(text)
    if tags:
        inside = last_boxed(tags[-1])
        return Found(inside if inside is not None else tags[-1].strip(), "tag")
    boxed = last_boxed(text)
    if boxed is not None:
        return Found(boxed, "boxed")
    hashes = _HASHES.findall(text)
    if hashes:
        return Found(hashes[-1].strip(), "hashes")
    stated = [text[match.end() :].split("\n", 1)[0] for match in _PHRASE.finditer(text)]
    stated = [rest for rest in stated if rest.strip(" .。*")]
    if stated:
        return Found(_first_statement(stated[-1].strip()), "phrase")
    stripped = text.strip()
    if _is_bare(stripped):
        return Found(stripped, "line")
    formulas = [next(part for part in groups if part) for groups in _DOLLARS.findall(text)]
    if formulas:
        last = formulas[-1].strip()
        return Found(last.rsplit("=", 1)[-1].strip() if _is_chain(last) else last, "math")
    number = last_number(text)
    return None if number is None else Found(number, "number")


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
