"""The cheap, exact part of math grading: equal, different, or not decided (then math-verify is asked)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from common.reward_functions.algebra import same_formula
from common.reward_functions.numbers import parse_number
from common.reward_functions.units import differ, split_unit, without_unit

MAX_ANSWER = 2000  # characters; a longer "answer" is no answer

_REPLACEMENTS = (
    (r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"), (r"\cfrac", r"\frac"), (r"\left", ""), (r"\right", ""),
    (r"\displaystyle", ""), (r"\!", ""), (r"\,", ""), (r"\;", ""), (r"\:", ""), (r"\ ", " "), ("~", " "),
    (r"\qquad", " "), (r"\quad", " "), (r"\bigl", ""), (r"\bigr", ""), (r"\big", ""), (r"\Big", ""),
    ("∞", r"\infty"), ("−", "-"), ("–", "-"), ("—", "-"), ("π", r"\pi"), ("×", r"\times"), ("·", r"\cdot"),
    ("÷", "/"), ("≤", r"\le "), ("≥", r"\ge "), ("∪", r"\cup"), ("∈", r"\in "), ("≠", r"\ne "),
    ("（", "("), ("）", ")"), ("，", ","), ("、", ","), ("：", ":"), ("；", ";"), ("【", "["), ("】", "]"),
    ("｛", r"\{"), ("｝", r"\}"), ("＝", "="), ("＋", "+"), ("－", "-"), ("／", "/"),
    ("½", r"\frac{1}{2}"), ("⅓", r"\frac{1}{3}"), ("¼", r"\frac{1}{4}"), ("¾", r"\frac{3}{4}"),
    ("²", "^2"), ("³", "^3"), ("√", r"\sqrt"), ("°", r"^\circ"), (r"\degree", r"^\circ"), (r"\$", ""),
    (r"\lbrace", r"\{"), (r"\rbrace", r"\}"), (r"\lbrack", "["), (r"\rbrack", "]"), (r"\geq", r"\ge"),
    (r"\leq", r"\le"), (r"\neq", r"\ne"),
)  # fmt: skip
_FULL_WIDTH = str.maketrans("０１２３４５６７８９．％", "0123456789.%")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|textit|rm|operatorname)\s*\{([^{}]*)\}")
_ASSIGNED = re.compile(
    r"(?:\(?[A-Za-z](?:_\{?\w+\}?)?(?:\([a-z]\))?\)?|[A-Z]{2,3}|\\[a-z]+)\s*(?:=|\\in(?![a-z]))\s*(.+)"
)
_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}", re.DOTALL)
_OUTER_DOLLARS = re.compile(r"(\$\$?|\\\(|\\\[)(.*?)(\$\$?|\\\)|\\\])", re.DOTALL)
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s'-]+[^\W\d_]+)*")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{5,}")
_BETWEEN = re.compile(
    r"(?P<start>[^<>=\\a-zA-Z]+)\s*(?P<first><=?|\\le)\s*[A-Za-z]\s*(?P<sign><=?|\\le)\s*(?P<end>[^<>=]+)"
)
_BEYOND = re.compile(r"[A-Za-z]\s*(?P<sign>[<>]=?|\\[lg]e)\s*(?P<end>[^<>=]+)")


@dataclass(frozen=True)
class Number:
    """An exact value; `decimals` counts digits behind the point of a plain decimal, -1 for anything else."""

    value: Fraction
    unit: str = ""
    percent: bool = False
    decimals: int = -1


@dataclass(frozen=True)
class Group:
    """Several values: list, set, matrix, union, or the brackets of a tuple or interval: '()', '(]'..."""

    kind: str
    items: tuple[Value, ...]


@dataclass(frozen=True)
class Text:
    """Anything else, with LaTeX spelling differences removed."""

    text: str


Value = Number | Group | Text


def clean(answer: str) -> str:
    """The answer without decoration: math marks, text commands, full-width forms, bold, the final stop."""
    text = answer.strip().translate(_FULL_WIDTH).strip("*").strip()
    whole = _OUTER_DOLLARS.fullmatch(text)
    if whole:
        text = whole.group(2).strip()
    rows = text.split(r"\\")  # the row mark of matrices is no backslash before a space
    for old, new in _REPLACEMENTS:
        if old in text:
            rows = [row.replace(old, new) for row in rows]
    text = r"\\".join(rows)
    text = _TEXT_COMMAND.sub(r" \1 ", text) if "\\" in text else text
    text = text.replace("$", " ").replace("¥", "").replace("￥", "").replace("€", "").replace("£", "")
    return " ".join(text.split()).rstrip(".。;,").strip()


def parse(answer: str) -> Value:
    """Structure of one cleaned answer."""
    number = _number(answer)
    if number is not None:
        return number
    assigned = _ASSIGNED.fullmatch(answer)
    if assigned and "," not in answer[: assigned.start(1)]:
        inner = assigned.group(1)
        if "=" not in inner and r"\le" not in inner and r"\ge" not in inner:
            return parse(inner.strip())
    between = _BETWEEN.fullmatch(answer) or _BEYOND.fullmatch(answer)
    if between:
        interval = _interval(**between.groupdict())
        if interval is not None:
            return interval
    if r"\cup" in answer:
        return Group("union", tuple(parse(piece.strip()) for piece in _split(answer, r"\cup")))
    matrix = _MATRIX.fullmatch(answer)
    if matrix:
        rows = [row for row in matrix.group(2).split(r"\\") if row.strip()]
        cells = [tuple(parse(cell.strip()) for cell in row.split("&")) for row in rows]
        return Group("matrix", tuple(Group("row", row) for row in cells))
    bracketed = _bracketed(answer)
    if bracketed is not None:
        return bracketed
    if "," in answer or ";" in answer:
        items = _split(answer.replace(" and ", ","), ",") if ";" not in answer else _split(answer, ";")
        items = [item.strip() for item in items if item.strip()]
        if len(items) > 1:
            return Group("list", tuple(parse(item) for item in items))
    if " and " in answer or " or " in answer or "或" in answer or "和" in answer:
        items = re.split(r"\s+(?:and|or)\s+|[或和]", answer)
        if all(_number(item.strip()) or _ASSIGNED.fullmatch(item.strip()) for item in items):
            return Group("list", tuple(parse(item.strip()) for item in items))
    bare = without_unit(answer)
    return Text(_spelling(answer)) if bare == answer else parse(bare)


def _interval(sign: str, end: str, start: str | None = None, first: str | None = None) -> Group | None:
    """`1 < x <= 2` or `x > 3` as an interval; None unless its ends are numbers."""
    ends = [parse(text.strip()) for text in (start, end) if text is not None]
    if not all(isinstance(item, Number) for item in ends):
        return None
    closed = sign != "<" and sign != ">"
    if first is not None:
        left = "(" if first == "<" else "["
        return Group(left + ("]" if closed else ")"), tuple(ends))
    if sign in ("<", r"\le", "<="):
        return Group("(]" if closed else "()", (Text(r"-\infty"), *ends))
    return Group("[)" if closed else "()", (*ends, Text(r"\infty")))


def _number(text: str) -> Number | None:
    value = parse_number(text)
    unit = ""
    if value is None:
        body, unit = split_unit(text)
        value = parse_number(body) if unit else None
        if value is None:
            return None
        text = body
    digits = text.replace(",", "").lstrip("+-").strip()
    whole, _, decimals = digits.partition(".")
    plain = (whole + decimals).isdigit()
    is_percent = text.rstrip()[-1:] in "%％" or "百分之" in text or text.lower().endswith("percent")
    return Number(value, unit, is_percent, len(decimals) if plain else -1)


def _bracketed(text: str) -> Value | None:
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inner = text[2:-2].strip()
        return Group("set", tuple(parse(item.strip()) for item in _split(inner, ",")) if inner else ())
    if len(text) < 2 or text[0] not in "([{" or text[-1] not in ")]}" or not _spans(text):
        return None
    inner = text[1:-1].strip()
    items = [item.strip() for item in _split(inner, ",")]
    if text[0] == "{":
        return Group("set", tuple(parse(item) for item in items)) if text[-1] == "}" and inner else None
    if len(items) == 1:
        return parse(inner) if text[0] + text[-1] == "()" and inner else None
    return Group(text[0] + text[-1], tuple(parse(item) for item in items))


def _spans(text: str) -> bool:
    """Whether the first bracket closes at the very end."""
    depth = 0
    for index, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0:
            return index == len(text) - 1
    return False


def _split(text: str, separator: str) -> list[str]:
    """Split at separators outside all brackets; thousands commas were read as a number before."""
    parts, depth, start, index = [], 0, 0, 0
    while index < len(text):
        char = text[index]
        depth += (char in "([{") - (char in ")]}")
        if depth == 0 and text.startswith(separator, index):
            parts.append(text[start:index])
            index += len(separator)
            start = index
            continue
        index += 1
    return [*parts, text[start:]]


def _spelling(text: str) -> str:
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"\^\s*\{\s*(\w)\s*\}", r"^\1", text)
    return (
        re.sub(r"\s+", "", text) if "\\" in text or not text.replace(" ", "").isalpha() else text.casefold()
    )


def same(gold: Value, answer: Value) -> bool | None:
    """Equal (True), certainly different (False), or undecided (None)."""
    if isinstance(gold, Number) and isinstance(answer, Number):
        return _same_number(gold, answer)
    if isinstance(gold, Group) and isinstance(answer, Group):
        return _same_group(gold, answer)
    if isinstance(gold, Text) and isinstance(answer, Text) and gold.text == answer.text and gold.text:
        return True
    if isinstance(gold, Text) and _WORDS.fullmatch(gold.text):
        # "Monday" is a word; math-verify would read it as a product of letters. "ab" may be one: ba.
        product = (
            isinstance(answer, Text) and len(gold.text) <= 3 and sorted(gold.text) == sorted(answer.text)
        )
        return None if product else False
    return None


def _same_number(gold: Number, answer: Number) -> bool:
    if differ(gold.unit, answer.unit):
        return False
    if gold.value == answer.value:
        return True
    if gold.percent != answer.percent:  # "50" and "0.5" both answer "what percent?" when the gold is 50%
        plain, percent = (gold.value, answer.value) if answer.percent else (answer.value, gold.value)
        return plain == percent * 100
    return _rounds_to(gold, answer) or _rounds_to(answer, gold)


def _rounds_to(exact: Number, rounded: Number) -> bool:
    """Whether `rounded`, of 3 decimals and 4 digits or more, is a never-ending fraction cut there."""
    if rounded.decimals < 3 or exact.decimals >= 0 or abs(rounded.value) * 10**rounded.decimals < 1000:
        return False
    rest = exact.value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest > 1 and abs(exact.value - rounded.value) * 2 * 10**rounded.decimals <= 1


def _same_group(gold: Group, answer: Group) -> bool | None:
    kinds = {gold.kind, answer.kind}
    if len(kinds) == 2 and "list" not in kinds:
        brackets = {"()", "[]", "(]", "[)"}
        return False if kinds <= brackets and "matrix" not in kinds else None
    if len(gold.items) != len(answer.items):
        decided = all(isinstance(item, Number) for group in (gold, answer) for item in group.items)
        return False if decided and kinds != {"set"} else None
    if kinds & {"set", "union"} or kinds == {"list"}:
        return _matched(gold.items, answer.items)
    return _all(same(g, a) for g, a in zip(gold.items, answer.items, strict=True))


def _matched(gold: tuple[Value, ...], answer: tuple[Value, ...]) -> bool | None:
    """Compare without regard to order."""
    left = list(answer)
    undecided = False
    for item in gold:
        verdicts = [same(item, other) for other in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif None in verdicts:
            undecided = True
        else:
            return False
    return None if undecided else True


def _all(verdicts: object) -> bool | None:
    seen = list(verdicts)  # type: ignore[call-overload]
    if False in seen:
        return False
    return None if None in seen else True


def compare(gold: str, answer: str, hard: Callable[[str, str], bool]) -> tuple[bool, str]:
    """Verdict and how it was reached ('exact' or 'math-verify'); `hard` is asked where exact work ends."""
    if len(answer) > MAX_ANSWER or not answer.strip():
        return False, "exact"
    gold, answer = clean(gold), clean(answer)
    verdict = gold == answer or same(parse(gold), parse(answer))
    if verdict is None:
        verdict = same_formula(gold, answer)
    if verdict is None and "=" not in answer and _WORD.search(answer) and not _WORD.search(gold):
        verdict = False  # a sentence is no formula; math-verify would multiply its letters
    if verdict is not None:
        return verdict, "exact"
    return hard(gold, answer), "math-verify"
