"""Units behind a number: dropped when only one side has them, compared when both have."""

from __future__ import annotations

import re

# spelling -> canonical name. Conversion between units is left out on purpose: a question names its unit.
_UNITS = {
    canonical: spellings.split()
    for canonical, spellings in {
        "m": "m meter meters metre metres 米", "km": "km kilometer kilometers kilometre kilometres 千米 公里",
        "cm": "cm centimeter centimeters centimetre centimetres 厘米 公分",
        "mm": "mm millimeter millimeters 毫米", "in": "inch inches 英寸", "ft": "ft foot feet 英尺",
        "yd": "yard yards", "mi": "mile miles 英里", "g": "g gram grams 克", "t": "ton tons tonne tonnes 吨",
        "kg": "kg kilogram kilograms kilo kilos 千克 公斤", "mg": "mg milligram milligrams",
        "lb": "lb lbs pound pounds 磅", "oz": "oz ounce ounces", "s": "s sec second seconds 秒 秒钟",
        "min": "min mins minute minutes 分钟 分鐘", "h": "h hr hrs hour hours 小时 小時",
        "d": "day days 天 日",
        "week": "week weeks 周 星期", "month": "month months 个月 月", "year": "year years 年 岁 歲",
        "l": "l liter liters litre litres 升", "ml": "ml milliliter milliliters 毫升",
        "m/s": "m/s", "km/h": "km/h kmh", "mph": "mph", "cent": "cent cents", "yuan": "yuan rmb 元 块 塊 圆",
        "deg": "degree degrees ^\\circ 度", "usd": "dollar dollars usd 美元", "eur": "euro euros 欧元",
        "m^2": "平方米", "cm^2": "平方厘米", "m^3": "立方米", "cm^3": "立方厘米",
    }.items()
}  # fmt: skip
_CANONICAL = {spelling: name for name, spellings in _UNITS.items() for spelling in spellings}
_COUNTERS = (
    "个 只 名 人 本 条 张 辆 件 次 棵 头 种 支 朵 座 间 组 位 瓶 箱 盒 颗 根 套 双 页 题 道 枚 句 分 倍"
)
_CANONICAL |= {word: f"count:{word}" for word in _COUNTERS.split()}
_LONGEST_FIRST = sorted(_CANONICAL, key=len, reverse=True)
_SHORT = ("cm", "mm", "km", "kg", "mg", "ml")
_POWER = re.compile(r"\s*\^?\s*\{?\s*([23])\s*\}?$")
_BODY = r"(?P<body>.*?[\d}\])零〇一二两三四五六七八九十百千万亿半点])"
_UNIT = (
    r"(?P<unit>(?![零〇一二两三四五六七八九十百千万亿点])"
    r"[^\d\s(){}\[\]\\+*=<>,^][^\d(){}\[\]\\+*=<>,^]{0,30}|\^\s*\{?\s*\\circ\s*\}?)"
)
_TAIL = re.compile(rf"{_BODY}\s*{_UNIT}")
_NOUN = re.compile(r"[A-Za-z]{2,}(?:\s+(?:of\s+)?[A-Za-z]{2,}){0,2}")


def split_unit(text: str) -> tuple[str, str]:
    """('5', 'cm') for '5 cm'; the unit is '' when there is none. Squares and cubes stay part of the unit."""
    power_text = ""
    power = _POWER.search(text)
    stem = text
    if power and not text[: power.start()].rstrip().endswith(tuple("0123456789})")):
        stem, power_text = text[: power.start()], f"^{power.group(1)}"
    for prefix in ("square ", "cubic ", "sq. ", "sq ", "cu "):
        if prefix in stem:
            stem = stem.replace(prefix, "")
            power_text = "^2" if prefix.startswith("s") else "^3"
    match = _TAIL.fullmatch(stem.strip())
    if not match:
        return text, ""
    unit = re.sub(r"\s+", " ", match.group("unit")).strip().rstrip(".")
    if unit.startswith("^"):
        unit = "^\\circ"
    name = _CANONICAL.get(unit) or _CANONICAL.get(unit.lower())
    if name is None:
        if not _NOUN.fullmatch(unit):
            return text, ""
        name = f"count:{unit.lower().rstrip('s')}"
    return match.group("body").strip(), name + power_text


def without_unit(text: str) -> str:
    """`text` without a known unit at its end: Chinese ones anywhere, others behind a space."""
    for spelling in _LONGEST_FIRST:
        if text.endswith(spelling if spelling[0] > "\u2e80" else f" {spelling}") and text != spelling:
            return text[: -len(spelling)].strip()
    return text


def leading_unit(text: str) -> str:
    """The known unit that `text` starts with, or ''; short English ones ("in", "s") are too often words."""
    body = text.lstrip()
    for spelling in _LONGEST_FIRST:
        if not body.startswith(spelling) or _CANONICAL[spelling].startswith("count:"):
            continue
        after = body[len(spelling) : len(spelling) + 1]
        if spelling[0] > "\u2e80" or (len(spelling) > 2 and not after.isalpha()):
            return spelling
        if spelling in _SHORT and not after.isalpha():
            return spelling
    return ""


def differ(left: str, right: str) -> bool:
    """Whether two canonical units contradict each other; what is merely counted (apples, 个) never does."""
    return (
        bool(left and right)
        and left != right
        and not left.startswith("count:")
        and not right.startswith("count:")
    )
