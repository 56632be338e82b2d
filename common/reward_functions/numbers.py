"""Read one number exactly, as a Fraction: digits, LaTeX, percent, Chinese and English number words."""

from __future__ import annotations

import re
from fractions import Fraction

# Longer numbers are no answers a person wrote, and int() of millions of digits takes seconds.
MAX_DIGITS = 60
MAX_EXPONENT = 60

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?"
_PLAIN = re.compile(rf"([-+]?)\s*({_DIGITS})\.?(?:[eE]([-+]?\d{{1,3}}))?")
_TIMES_TEN = re.compile(
    rf"([-+]?{_DIGITS})\s*(?:\\times|\\cdot|[x*×·])\s*10\s*\^\s*\{{?\s*([-+]?\d{{1,3}})\s*\}}?"
)
_SLASH = re.compile(rf"([-+]?)\s*\(?\s*([-+]?{_DIGITS})\s*\)?\s*/\s*\(?\s*([-+]?{_DIGITS})\s*\)?")
_FRAC = re.compile(
    r"([-+]?)\s*(\d*)\s*\\[dtc]?frac\s*"
    rf"(?:\{{\s*([-+]?{_DIGITS})\s*\}}|(\d))\s*(?:\{{\s*([-+]?{_DIGITS})\s*\}}|(\d))"
)
_MIXED = re.compile(r"([-+]?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)")
_PERCENT = re.compile(r"\s*(?:\\?%|％|percent|per cent)$", re.IGNORECASE)

_CHINESE_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {
    "〇": 0, "两": 2, "兩": 2, "壹": 1, "贰": 2, "貳": 2, "叁": 3, "肆": 4, "伍": 5, "陆": 6, "陸": 6, "柒":
    7,
    "捌": 8, "玖": 9,
}  # fmt: skip
_CHINESE_UNITS = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_CHINESE_BIG = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_CHINESE = re.compile(rf"[{''.join([*_CHINESE_DIGITS, *_CHINESE_UNITS, *_CHINESE_BIG])}点點半]+")
_DIGITS_BIG = re.compile(rf"([-+]?{_DIGITS})\s*([万萬亿億]+)")

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ENGLISH_SMALL = {word: value for value, word in enumerate(_ONES.split())} | {
    word: 10 * (value + 2) for value, word in enumerate(_TENS.split())
}
_ENGLISH_BIG = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


def parse_number(text: str) -> Fraction | None:
    """The exact value of `text` if the whole of it is one number, else None. 12% is 3/25."""
    text = text.strip()
    if not text or len(text) > 3 * MAX_DIGITS:
        return None
    percent = _PERCENT.search(text)
    if percent:
        value = parse_number(text[: percent.start()])
        return None if value is None else value / 100
    return _western(text) if text[-1].isdigit() or text[-1] in "}.)" else _words(text)


def _western(text: str) -> Fraction | None:
    if match := _PLAIN.fullmatch(text):
        return _decimal(match.group(1) + match.group(2), match.group(3))
    if match := _FRAC.fullmatch(text):
        sign, whole, top, top_digit, bottom, bottom_digit = match.groups()
        return _ratio(sign, whole, top or top_digit, bottom or bottom_digit)
    if match := _MIXED.fullmatch(text):
        return _ratio(match.group(1), match.group(2), match.group(3), match.group(4))
    if match := _SLASH.fullmatch(text):
        return _ratio(match.group(1), "", match.group(2), match.group(3))
    if match := _TIMES_TEN.fullmatch(text):
        return _decimal(match.group(1), match.group(2))
    if text.startswith(("-", "+")) and text[1:2] == "(" and text.endswith(")"):
        value = parse_number(text[2:-1])
        return None if value is None else (-value if text[0] == "-" else value)
    return None


def _decimal(digits: str, exponent: str | None = None) -> Fraction | None:
    digits = digits.replace(",", "")
    if not any(c.isdigit() for c in digits) or len(digits) > MAX_DIGITS:
        return None
    power = int(exponent) if exponent else 0
    return Fraction(digits) * Fraction(10) ** power if abs(power) <= MAX_EXPONENT else None


def _ratio(sign: str, whole: str, top: str, bottom: str) -> Fraction | None:
    upper, lower = _decimal(top), _decimal(bottom)
    if upper is None or not lower:
        return None
    value = upper / lower + (int(whole) if whole and len(whole) <= MAX_DIGITS else 0)
    return -value if sign == "-" else value


def _words(text: str) -> Fraction | None:
    for negative in ("负", "負", "negative ", "minus "):
        if text.lower().startswith(negative):
            value = _words(text[len(negative) :])
            return None if value is None else -value
    if match := _DIGITS_BIG.fullmatch(text):
        value = _decimal(match.group(1))
        for unit in match.group(2):
            value = None if value is None else value * _CHINESE_BIG[unit]
        return value
    if text.startswith("百分之"):
        value = parse_number(text[3:]) if text[3:4] != "百" else Fraction(100)
        return None if value is None else value / 100
    if "分之" in text:
        return _chinese_fraction(text)
    if _CHINESE.fullmatch(text):
        return _chinese(text)
    return _english(text.lower())


def _chinese_fraction(text: str) -> Fraction | None:
    lower_text, _, upper_text = text.partition("分之")
    whole_text, joined, lower_text = lower_text.rpartition("又")
    whole = _chinese_or_digits(whole_text) if joined else Fraction(0)
    lower, upper = _chinese_or_digits(lower_text), _chinese_or_digits(upper_text)
    return None if whole is None or upper is None or not lower else whole + upper / lower


def _chinese_or_digits(text: str) -> Fraction | None:
    return _decimal(text) if text.isascii() and text.replace(".", "").isdigit() else _chinese(text)


def _chinese(text: str) -> Fraction | None:
    if text == "半":
        return Fraction(1, 2)
    whole_text, point, decimals = text.replace("點", "点").partition("点")
    whole = _chinese_whole(whole_text)
    if whole is None or not point:
        return None if whole is None else Fraction(whole)
    if not decimals or any(c not in _CHINESE_DIGITS for c in decimals):
        return None
    return whole + Fraction(int("".join(str(_CHINESE_DIGITS[c]) for c in decimals)), 10 ** len(decimals))


def _chinese_whole(text: str) -> int | None:
    if not text:
        return None
    if all(c in _CHINESE_DIGITS for c in text):  # read digit by digit: 二〇二四
        return int("".join(str(_CHINESE_DIGITS[c]) for c in text))
    total = section = digit = 0
    last_unit = 10
    for char in text:
        if char in _CHINESE_DIGITS:
            digit = _CHINESE_DIGITS[char]
            if digit == 0:
                last_unit = 10
        elif char in _CHINESE_UNITS:
            last_unit = _CHINESE_UNITS[char]
            section += (digit or 1) * last_unit
            digit = 0
        elif char in _CHINESE_BIG:
            big = _CHINESE_BIG[char]
            if big == 10**8:
                total, section = (total + section + digit) * big, 0
            else:
                total, section = total + (section + digit) * big, 0
            digit, last_unit = 0, big
        else:
            return None
    if digit and last_unit > 10 and text[-2] not in "零〇":  # 三百五 is 350, 两万三 is 23000
        digit *= last_unit // 10
    return total + section + digit


def _english(text: str) -> Fraction | None:
    if text in ("half", "a half", "one half", "one-half"):
        return Fraction(1, 2)
    total = group = 0
    seen = False
    for word in text.replace("-", " ").replace(",", " ").split():
        if word in _ENGLISH_SMALL:
            group += _ENGLISH_SMALL[word]
        elif word == "hundred":
            group = (group or 1) * 100
        elif word in _ENGLISH_BIG:
            total, group = total + (group or 1) * _ENGLISH_BIG[word], 0
        elif word == "and" and seen:
            continue
        else:
            return None
        seen = True
    return Fraction(total + group) if seen else None
