"""Equality of formulas by their values at fixed points: exact for rational functions, tight for roots and pi.

Two rational functions that agree at random-looking points are the same one (Schwartz-Zippel), so the slow
road through a LaTeX grammar and simplification is left to what this small reader does not know.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|(\\[A-Za-z]+)|([A-Za-z])|(\*\*|[-+*/^(){}\[\]]))")
# Both signs, so that sqrt(x^2) is not taken for x; no small integers, at which different formulas often meet.
_POINTS = ((7919, 1009), (-6311, 997), (4801, -1201))
_CONSTANTS_OF_DOUBT = frozenset("eiEIdfghFGH")  # Euler's number, the imaginary unit, differentials, functions
_FUNCTIONS = {r"\sin": math.sin, r"\cos": math.cos, r"\tan": math.tan}
_MAX_POWER = 64
_EQUAL, _DIFFERENT = 1e-12, 1e-6  # relative; between them nothing is decided
_MAX_DEPTH = 30

Number = Fraction | float


class _Unknown(Exception):  # noqa: N818 (a signal inside this module, no error)
    """The formula is not of the kind that is read here."""


class _Reader:
    """Recursive descent over one formula that computes its value on the way."""

    def __init__(self, tokens: list[str], values: dict[str, Fraction]) -> None:
        self.tokens = tokens
        self.values = values
        self.place = 0
        self.depth = 0

    def peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.place += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise _Unknown

    def sum(self) -> Number:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _Unknown
        sign = self.take() if self.peek() in ("+", "-") else "+"
        total = self.product()
        if sign == "-":
            total = -total
        while self.peek() in ("+", "-"):
            sign = self.take()
            term = self.product()
            total = total + term if sign == "+" else total - term
        self.depth -= 1
        return total

    def product(self) -> Number:
        total = self.power()
        while True:
            token = self.peek()
            if token in ("*", r"\cdot", r"\times"):
                self.take()
                total = total * self.signed()
            elif token in ("/", r"\div"):
                self.take()
                total = _divide(total, self.signed())
            elif token and (token in "([{" or token[0].isalpha() or token[0] == "\\"):
                total = total * self.power()  # written side by side
            elif token and token[0].isdigit():
                raise _Unknown  # "x 2", "2 3": no agreed meaning
            else:
                return total

    def signed(self) -> Number:
        if self.peek() == "-":
            self.take()
            return -self.power()
        return self.power()

    def power(self) -> Number:
        base = self.atom()
        if self.peek() not in ("^", "**"):
            return base
        self.take()
        exponent = self.group() if self.peek() == "{" else self.atom()
        if self.peek() in ("^", "**") or not isinstance(exponent, Fraction) or abs(exponent) > _MAX_POWER:
            raise _Unknown
        if exponent.denominator == 1:
            if base == 0 and exponent <= 0:
                raise _Unknown
            return base ** int(exponent)
        return _root(base, 2) ** int(exponent * 2) if exponent.denominator == 2 else self.refuse()

    def refuse(self) -> Number:
        raise _Unknown

    def group(self) -> Number:
        opened = self.take()
        closing = {"(": ")", "[": "]", "{": "}"}.get(opened)
        if closing is None:
            raise _Unknown
        value = self.sum()
        self.expect(closing)
        return value

    def atom(self) -> Number:
        token = self.peek()
        if token and token in "([{":
            return self.group()
        self.take()
        if token[:1].isdigit() or token[:1] == ".":
            return Fraction(token)
        if len(token) == 1 and token.isalpha() and token not in _CONSTANTS_OF_DOUBT:
            return self.values[token]
        if token == r"\pi":
            return math.pi
        if token == r"\frac":
            return _divide(self.braced(), self.braced())
        if token == r"\sqrt":
            degree = self.group() if self.peek() == "[" else Fraction(2)
            return _root(self.braced(), degree)
        if token in _FUNCTIONS and self.peek() in ("(", "{"):
            return _FUNCTIONS[token](float(self.group()))
        raise _Unknown

    def braced(self) -> Number:
        if self.peek() != "{":
            raise _Unknown
        return self.group()


def _divide(top: Number, bottom: Number) -> Number:
    if bottom == 0:
        raise _Unknown
    return top / bottom


def _root(value: Number, degree: Number) -> Number:
    if value < 0 or degree not in (2, 3):
        raise _Unknown
    return float(value) ** (1 / float(degree))


def same_formula(gold: str, answer: str) -> bool | None:
    """Whether two cleaned formulas are equal for all values of their letters; None where not decided."""
    left, right = _tokens(gold), _tokens(answer)
    if left is None or right is None:
        return None
    letters = sorted({t for t in left if len(t) == 1 and t.isalpha()})
    if letters != sorted({t for t in right if len(t) == 1 and t.isalpha()}):
        return None
    for start, step in _POINTS if letters else _POINTS[:1]:
        values = {x: Fraction(start + step * i * i, 613 + 2 * i) for i, x in enumerate(letters)}
        try:
            verdict = _close(_value(left, values), _value(right, values))
        except (_Unknown, KeyError, OverflowError, ZeroDivisionError, ValueError):
            return None
        if verdict is not True:
            return verdict
    return True


def _tokens(text: str) -> list[str] | None:
    tokens, place = [], 0
    text = text.strip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            return None
        tokens.append(match.group().strip())
        place = match.end()
    return tokens if 0 < len(tokens) <= 200 else None


def _value(tokens: list[str], values: dict[str, Fraction]) -> Number:
    reader = _Reader(tokens, values)
    value = reader.sum()
    if reader.place < len(tokens):
        raise _Unknown
    return value


def _close(left: Number, right: Number) -> bool | None:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    gap, size = abs(float(left) - float(right)), 1 + abs(float(right))
    if not math.isfinite(gap):
        return None
    return True if gap <= _EQUAL * size else False if gap > _DIFFERENT * size else None
