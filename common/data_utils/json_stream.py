"""JSON arrays and objects of any size, value by value, with memory for one value at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from common.data_utils.errors import DataError

_BLOCK = 1 << 20
_CONTAINERS = ("data", "train", "rows", "examples", "instances", "items", "records", "samples", "dataset")
_SPACE = " \t\r\n"


class _Scanner:
    """A text stream with a window that grows until the next value fits."""

    def __init__(self, handle: IO[str], label: str) -> None:
        self.handle, self.label = handle, label
        self.window, self.at, self.line = "", 0, 1
        self.decode = json.JSONDecoder().raw_decode

    def _more(self, amount: int) -> bool:
        block = self.handle.read(amount)
        if block:
            self.line += self.window.count("\n", 0, self.at)
            self.window = self.window[self.at :] + block
            self.at = 0
        return bool(block)

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            while self.at < len(self.window) and self.window[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.window):
                return self.window[self.at]
            if not self._more(_BLOCK):
                return ""

    def value(self) -> Any:
        """The next value.

        Raises:
            DataError: it is not valid JSON, or the file ends inside it; the line is named.
        """
        amount = _BLOCK
        while True:
            self.peek()
            try:
                value, end = self.decode(self.window, self.at)
                # a number at the window's end may go on in the next block
                if end < len(self.window) or isinstance(value, (dict, list, str)) or not self._more(amount):
                    self.at = end
                    return value
            except RecursionError:
                raise self.error("nested too deeply") from None
            except ValueError as problem:
                if not self._more(amount):
                    position = getattr(problem, "pos", self.at)
                    self.at = min(position, len(self.window))
                    raise self.error(getattr(problem, "msg", str(problem))) from None
            amount *= 2

    def error(self, what: str) -> DataError:
        line = self.line + self.window.count("\n", 0, self.at)
        return DataError(f"{self.label}: not valid JSON near line {line}: {what}")


def iter_values(handle: IO[str], label: str) -> Iterator[Any]:
    """Elements of a top-level array one by one; otherwise each top-level value.

    Raises:
        DataError: a syntax error, named by line.
    """
    with handle:
        scanner = _Scanner(handle, label)
        if scanner.peek() != "[":
            while scanner.peek():
                yield scanner.value()
            return
        scanner.at += 1
        if scanner.peek() == "]":
            return
        while True:
            if not scanner.peek():
                raise scanner.error("the file ends inside its array")
            yield scanner.value()
            mark = scanner.peek()
            scanner.at += 1
            if mark == "]":
                if scanner.peek():
                    raise scanner.error("there is text after the closing bracket of the array")
                return
            if mark != ",":
                scanner.at -= 1
                raise scanner.error("expected ',' or ']'" if mark else "the file ends inside its array")


def unwrap(values: Iterator[Any], label: str, split: str) -> Iterator[Any]:
    """Rows behind one level of wrapping: {"data": [...]}, {"train": [...]}, {"column": {"0": ...}}.

    Raises:
        DataError: an object that holds several lists, none of them by a known name.
    """
    first = next(values, None)
    if first is None:
        return
    second = next(values, None)
    rows = _inside(first, label, split) if isinstance(first, dict) and second is None else None
    if rows is not None:
        yield from rows
        return
    yield first
    if second is not None:
        yield second
    yield from values


def _inside(value: dict[str, Any], label: str, split: str) -> list[Any] | None:
    lists = {
        key: inner
        for key, inner in value.items()
        if isinstance(inner, list) and inner and isinstance(inner[0], dict)
    }
    if split:
        if split not in lists:
            raise DataError(f"{label}: has no list {split!r}; it has: {', '.join(lists) or '(none)'}")
        return lists[split]
    if len(lists) > 1 and any(key in _CONTAINERS for key in lists):
        raise DataError(
            f"{label}: holds several lists ({', '.join(lists)}); choose one as FILE:{next(iter(lists))}"
        )
    for key in _CONTAINERS:
        if key in lists:
            return lists[key]
    if _is_turned(value):
        return _turn(value, label)
    return None


def is_wrapped(value: Any) -> bool:
    """Whether an object is a wrapping around rows rather than a row."""
    if not isinstance(value, dict):
        return False
    return any(isinstance(value.get(key), list) for key in _CONTAINERS) or _is_turned(value)


def _is_turned(value: dict[str, Any]) -> bool:
    """pandas' default export: every column an object whose keys are the row labels."""
    columns = list(value.values())
    return len(columns) > 1 and all(isinstance(column, dict) for column in columns) and "0" in columns[0]


def _turn(value: dict[str, Any], label: str) -> list[Any]:
    labels = list(next(iter(value.values())))
    if any(list(column) != labels for column in value.values()):
        raise DataError(f"{label}: its columns have different rows; export it with orient='records'")
    return [{name: column[key] for name, column in value.items()} for key in labels]
