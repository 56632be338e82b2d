"""Read scalars from TensorBoard event files without TensorBoard.

The files are TFRecords (length, its CRC, bytes, their CRC) of protobuf ``Event`` messages; only the fields a
scalar needs are decoded (``step`` = 2, ``summary`` = 5; in a value ``tag`` = 1, ``simple_value`` = 2,
``tensor`` = 8 with ``float_val`` = 5 or ``tensor_content`` = 4). Reading them
takes some ten times as long as verl's file logger, hence they are the last choice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from monitor.log_parser import Batch, Float32, Int32

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("varint too long")


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes | int]]:
    """Top-level fields of a protobuf message as (number, wire type, value)."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire == _FIXED64:
            size = 8
        elif wire == _FIXED32:
            size = 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > end:
            raise ValueError("field runs past its message")
        yield number, wire, data[at : at + size]
        at += size


def _tensor_value(data: bytes) -> float | None:
    kind = 0
    raw: bytes | None = None
    for number, wire, value in _fields(data):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number in (4, 5) and wire == _BYTES and isinstance(value, bytes):
            raw = value
        elif number == 5 and wire == _FIXED32 and isinstance(value, bytes):
            return float(struct.unpack("<f", value)[0])
    if raw is None:
        return None
    if kind in (0, 1) and len(raw) == 4:
        return float(struct.unpack("<f", raw)[0])
    if kind == 2 and len(raw) == 8:
        return float(struct.unpack("<d", raw)[0])
    return None


def _scalars(event: bytes) -> tuple[int, list[tuple[str, float]]]:
    step = 0
    found: list[tuple[str, float]] = []
    for number, _, value in _fields(event):
        if number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and isinstance(value, bytes):
            for inner, _, summary in _fields(value):
                if inner != 1 or not isinstance(summary, bytes):
                    continue
                tag, scalar = "", None
                for field, wire, content in _fields(summary):
                    if field == 1 and isinstance(content, bytes):
                        tag = content.decode("utf-8", "replace")
                    elif field == 2 and wire == _FIXED32 and isinstance(content, bytes):
                        scalar = float(struct.unpack("<f", content)[0])
                    elif field == 8 and isinstance(content, bytes) and scalar is None:
                        scalar = _tensor_value(content)
                if tag and scalar is not None:
                    found.append((tag, scalar))
    return step, found


def parse(data: bytes) -> tuple[Batch, int]:
    """Decode the whole records at the beginning of ``data``; returns them and the bytes used.

    TensorBoard writes one event per scalar, in no fixed order of steps within a step's batch; records are
    kept in file order, those of one step together.
    """
    steps: list[int] = []
    rows: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    bad, first_bad = 0, ""
    at = 0
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        end = at + 16 + size
        if size > 1 << 30:
            bad, first_bad = bad + 1, f"record of {size} bytes at byte {at}: not an event file"
            at = len(data)
            break
        if end > len(data):
            break
        try:
            step, scalars = _scalars(data[at + 12 : end - 4])
        except (ValueError, IndexError, struct.error) as error:
            bad += 1
            first_bad = first_bad or f"damaged record at byte {at}: {error}"
            scalars, step = [], 0
        at = end
        if not scalars:
            continue
        if not steps or steps[-1] != step:
            steps.append(step)
        for tag, value in scalars:
            rows.setdefault(tag, []).append(len(steps) - 1)
            values.setdefault(tag, []).append(value)
    columns: dict[str, tuple[Int32 | None, Float32]] = {
        tag: (np.array(rows[tag], dtype=np.int32), np.array(values[tag], dtype=np.float32)) for tag in rows
    }
    return Batch(np.array(steps, dtype=np.int64), columns, bad, first_bad), at
