"""Text that Excel opens as text: its limits, and a visible mark where a text had to be cut."""

from __future__ import annotations

import json
import re
from typing import Any

CELL_UNITS = 32_767  # UTF-16 code units (support.microsoft.com, "Excel specifications and limits")
CELL_LINE_FEEDS = 253
SHEET_ROWS = 1_048_576
# Neither XML nor Excel has these: controls, lone surrogates, the two non-characters.
_BAD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_BAD_ASCII = bytes(code for code in range(32) if code not in b"\t\n\r")
_RETURNS = re.compile("\r\n?")


def text_of(value: Any) -> str:
    """A value as the text of a cell: messages as a dialogue, other structures as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list) and value and all(isinstance(turn, dict) and "role" in turn for turn in value):
        if len(value) == 1:
            return text_of(value[0].get("content"))
        return "\n\n".join(f"[{turn['role']}]\n{text_of(turn.get('content'))}" for turn in value)
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def cell_text(text: str, where: str = "") -> tuple[str, bool]:
    """(text for one cell, whether it was cut).

    Args:
        text: anything.
        where: names the place of the full text in the mark, e.g. `results.jsonl line 7`.
    """
    if "\r" in text:
        text = _RETURNS.sub("\n", text)
    if _has_bad(text):
        text = _BAD.sub(lambda match: "\ufffd" if match[0] >= "\ud800" else "", text)
    long = len(text) * 2 > CELL_UNITS and _units(text) > CELL_UNITS
    if not long and text.count("\n") <= CELL_LINE_FEEDS:
        return text, False
    mark = f" ...[cut here; {len(text)} characters{f', full text in {where}' if where else ''}]"
    lines = text.split("\n", CELL_LINE_FEEDS + 1)
    kept = "\n".join(lines[: CELL_LINE_FEEDS + 1])
    room = CELL_UNITS - _units(mark)
    if _units(kept) > room:
        kept = kept.encode("utf-16-le")[: room * 2].decode("utf-16-le", errors="ignore")
    return kept + mark, True


def _has_bad(text: str) -> bool:
    """Whether a text holds what a cell cannot; for ASCII many times faster than the expression."""
    if text.isascii():
        return len(text.encode("ascii").translate(None, _BAD_ASCII)) != len(text)
    return _BAD.search(text) is not None


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def csv_text(text: str) -> str:
    """Text that a spreadsheet does not take for a formula when it opens the CSV file (CWE-1236)."""
    text = _BAD.sub(lambda match: "\ufffd" if match[0] >= "\ud800" else "", text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
