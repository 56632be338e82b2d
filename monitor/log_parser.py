"""Pure parsing of what verl 0.9.1 writes: its file logger, its console lines, its progress bar.

Every function takes complete lines as bytes and returns numbers; nothing here opens a file, keeps state or
imports Gradio. Formats, as written by ``verl.utils.tracking``:

* file logger: ``{"step": N, "data": {key: number or null}}``, one object per line (NaN and inf become null);
* console: ``step:N - key:value - key:value``, where numpy values print as ``np.float64(0.5)``, Ray puts a
  coloured ``(TaskRunnerV1 pid=..)`` in front, and tqdm's bar may share the line through ``\\r``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import orjson

Float32 = np.ndarray[Any, np.dtype[np.float32]]
Int32 = np.ndarray[Any, np.dtype[np.int32]]
Int64 = np.ndarray[Any, np.dtype[np.int64]]

ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")
_CONSOLE_STEP = re.compile(rb"(?<![\w/])step:(\d{1,18}) - ([^\r\n]+)")
_NUMPY_VALUE = re.compile(rb"^np\.\w+\((.*)\)$")
_RAY_REPEATED = re.compile(rb"\s*\[repeated \d+x.*$")
_PROGRESS = re.compile(rb"\|\s*(\d{1,12})/(\d{1,12})\s*\[")
_TRACEBACK = re.compile(rb"Traceback \(most recent call last\)|^\S*Error: |ray\.exceptions\.", re.MULTILINE)
_MAX_STEP = 2**62


@dataclass
class Batch:
    """Records of one chunk, in file order.

    ``steps`` has shape [rows]; each column is ``(rows, values)`` of equal length, where ``rows`` indexes
    ``steps`` and is None when the column has a value in every row. A value that was written as null or nan
    is NaN in its column; a key that was not written is simply not there.
    """

    steps: Int64
    columns: dict[str, tuple[Int32 | None, Float32]]
    bad_lines: int = 0
    first_bad: str = ""


@dataclass
class ConsoleFacts:
    """What a console log says besides its metrics: the bar's total and whether it ends in an error."""

    total_steps: int | None = None
    at: int | None = None
    error: str = ""


@dataclass
class _Builder:
    """Rows with the same set of keys are converted together, which is what makes bulk parsing fast."""

    steps: list[int] = field(default_factory=list)
    datas: list[dict[str, Any]] = field(default_factory=list)
    bad_lines: int = 0
    first_bad: str = ""

    def bad(self, line: bytes, why: str, count: int = 1) -> None:
        self.bad_lines += count
        if not self.first_bad:
            self.first_bad = f"{why}: {line[:80].decode('utf-8', 'replace')!r}"

    def batch(self) -> Batch:
        return Batch(
            np.array(self.steps, dtype=np.int64), _columns(self.datas), self.bad_lines, self.first_bad
        )


def number(value: Any) -> float | None:
    """A logged value as a float; None for what is not a number. null counts as NaN (verl writes it so)."""
    if value is None:
        return float("nan")
    if isinstance(value, (bool, int, float)):
        try:
            return float(value)
        except OverflowError:
            return float("inf")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _to_float32(values: Iterable[float], count: int) -> Float32:
    with np.errstate(over="ignore"):  # beyond float32 a value is shown as inf, which the charts mark
        return np.fromiter(values, dtype=np.float64, count=count).astype(np.float32)


def _columns(datas: list[dict[str, Any]]) -> dict[str, tuple[Int32 | None, Float32]]:
    if len(set(map(len, datas))) == 1 and datas[0]:
        # Equally long rows that all have the first one's keys have the same keys: no look at each row.
        keys = tuple(datas[0])
        with suppress(KeyError):
            table = _table(datas, keys)
            if table is not None:
                return {key: (None, table[position]) for position, key in enumerate(keys)}
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, data in enumerate(datas):
        groups.setdefault(tuple(data), []).append(row)
    parts: dict[str, list[tuple[Int32, Float32]]] = {}
    for keys, rows in groups.items():
        if not keys:
            continue
        count = len(rows)
        chosen: list[dict[str, Any]] = datas if count == len(datas) else [datas[row] for row in rows]
        index = np.array(rows, dtype=np.int32)
        if (table := _table(chosen, keys)) is not None:
            for position, key in enumerate(keys):
                parts.setdefault(key, []).append((index, table[position]))
            continue
        for key in keys:
            pairs = [
                (row, value)
                for row, data in zip(rows, chosen, strict=True)
                if (value := number(data[key])) is not None
            ]
            if pairs:
                kept = np.array([row for row, _ in pairs], dtype=np.int32)
                values = _to_float32((value for _, value in pairs), len(pairs))
                parts.setdefault(key, []).append((kept, values))
    return {key: _joined(pieces, len(datas)) for key, pieces in parts.items()}


def _table(datas: list[dict[str, Any]], keys: tuple[str, ...]) -> Float32 | None:
    """All values of rows that share ``keys`` as [keys, rows]; None when a value is not a plain number."""
    get = itemgetter(*keys)
    cells = map(get, datas) if len(keys) == 1 else chain.from_iterable(map(get, datas))
    try:
        flat = _to_float32(cells, len(datas) * len(keys))
    except (TypeError, ValueError, OverflowError):
        return None
    return np.ascontiguousarray(flat.reshape(len(datas), len(keys)).T)


def _joined(pieces: list[tuple[Int32, Float32]], total: int) -> tuple[Int32 | None, Float32]:
    if len(pieces) == 1:
        rows, values = pieces[0]
    else:
        rows = np.concatenate([piece[0] for piece in pieces])
        values = np.concatenate([piece[1] for piece in pieces])
        order = np.argsort(rows, kind="stable")
        rows, values = rows[order], values[order]
    return (None if len(rows) == total else rows), values


def _plain_batch(records: list[Any]) -> Batch | None:
    """All records in bulk, since a loop costs a third of the parsing; None when one is not as verl writes it."""
    if set(map(type, records)) != {dict}:
        return None
    try:
        steps = [record["step"] for record in records]
        datas = [record["data"] for record in records]
    except KeyError:
        return None
    if set(map(type, steps)) != {int} or set(map(type, datas)) != {dict}:
        return None
    if min(steps) < 0 or max(steps) >= _MAX_STEP:
        return None
    return Batch(np.array(steps, dtype=np.int64), _columns(datas))


def parse_jsonl(data: bytes) -> Batch:
    """Parse complete lines of verl's file logger. A bad line is counted, never fatal."""
    built = _Builder()
    records: list[Any]
    try:
        # One call for the whole chunk: several times faster than a call per line.
        records = orjson.loads(b"[" + data.rstrip(b"\n").replace(b"\n", b",") + b"]")
        lines: list[bytes] | None = None
    except orjson.JSONDecodeError:
        records, lines = [], []
        for line in data.split(b"\n"):
            if not line.strip():
                continue
            try:
                records.append(orjson.loads(line))
                lines.append(line)
            except orjson.JSONDecodeError:
                built.bad(line, "not JSON")
    if lines is None and (plain := _plain_batch(records)) is not None:
        return plain
    for position, record in enumerate(records):
        try:
            step, row = record["step"], record["data"]
            if type(step) is int and 0 <= step < _MAX_STEP and type(row) is dict:
                built.steps.append(step)
                built.datas.append(row)
                continue
        except (KeyError, TypeError):
            pass
        line = lines[position] if lines is not None else orjson.dumps(record)
        built.bad(line, 'not {"step": N, "data": {...}}')
    return built.batch()


def console_pairs(text: bytes) -> dict[str, float]:
    """``key:value - key:value`` of one record. A key may hold ":" or " - "; values are numbers."""
    pairs: dict[str, float] = {}
    pending = b""
    for part in text.split(b" - "):
        part = pending + part
        key, colon, raw = part.rpartition(b":")
        value = _console_number(raw.strip()) if colon else None
        if value is None:  # " - " belonged to the key: join it with what follows
            pending = part + b" - "
            continue
        pending = b""
        pairs[key.strip().decode("utf-8", "replace")] = value
    return pairs


def _console_number(raw: bytes) -> float | None:
    try:
        return float(raw)
    except ValueError:
        pass
    if match := _NUMPY_VALUE.match(raw):
        raw = match.group(1)
    if raw in (b"True", b"False"):
        return float(raw == b"True")
    try:
        return float(raw)
    except ValueError:
        return None


def parse_console(data: bytes) -> Batch:
    """Parse complete lines of a console log; everything that is not a metric record is passed over."""
    built = _Builder()
    for match in _CONSOLE_STEP.finditer(data):
        text = match.group(2)
        if b"\x1b" in text:
            text = ANSI.sub(b"", text)
        if b"[repeated" in text:
            text = _RAY_REPEATED.sub(b"", text)
        pairs = console_pairs(text)
        if pairs:
            built.steps.append(int(match.group(1)))
            built.datas.append(pairs)
        else:
            built.bad(match.group(0), "no key:number after step")
    return built.batch()


def console_facts(tail: bytes) -> ConsoleFacts:
    """Read the end of a console log: the bar's ``N/total`` and the last error line, if it ends in one."""
    clean = ANSI.sub(b"", tail)
    facts = ConsoleFacts()
    for match in _PROGRESS.finditer(clean):
        at, total = int(match.group(1)), int(match.group(2))
        line_start = max(clean.rfind(b"\n", 0, match.start()), clean.rfind(b"\r", 0, match.start()))
        # Other bars (loading shards, generating, an epoch of SFT) count something else.
        if b"Training Progress" in clean[line_start + 1 : match.start()]:
            facts.at, facts.total_steps = at, total
    last_record = clean.rfind(b"step:")
    errors = [m for m in _TRACEBACK.finditer(clean) if m.start() > last_record]
    if errors:
        lines = [line.strip() for line in clean[errors[-1].start() :].splitlines() if line.strip()]
        named = [
            line for line in lines if re.match(rb"^(\([^)]*\)\s*)?[\w.]*(Error|Exception|Interrupt)\b", line)
        ]
        facts.error = (named or lines)[-1][:300].decode("utf-8", "replace")
    return facts


def looks_like_metrics(head: bytes) -> bool:
    """Whether a file's first bytes are verl's file-logger format."""
    line = head.split(b"\n", 1)[0].lstrip()
    return bool(re.match(rb'\{\s*"step"\s*:\s*\d+\s*,\s*"data"\s*:\s*\{', line))


def looks_like_samples(head: bytes) -> bool:
    """Whether a file's first bytes are a dump of samples (verl's rollouts, or results of ``test.sh``)."""
    line = head.split(b"\n", 1)[0]
    return (
        line.lstrip().startswith(b"{") and b'"output"' in head and (b'"input"' in head or b'"prompt"' in head)
    )


def looks_like_console(head: bytes) -> bool:
    """Whether text holds at least one verl console record."""
    return _CONSOLE_STEP.search(ANSI.sub(b"", head)) is not None
