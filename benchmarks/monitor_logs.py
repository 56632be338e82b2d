"""Made-up logs for monitor_load.py: verl's file logger byte for byte, and the same as TensorBoard events."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson

KEYS = [
    "actor/pg_loss", "actor/kl_loss", "actor/entropy", "actor/grad_norm", "actor/lr", "actor/pg_clipfrac",
    "actor/ppo_kl", "critic/score/mean", "critic/score/max", "critic/score/min", "critic/rewards/mean",
    "response_length/mean", "response_length/clip_ratio", "prompt_length/mean", "perf/throughput",
    "perf/time_per_step", "perf/total_num_tokens", "timing_s/gen", "timing_s/step", "training/global_step",
]  # fmt: skip
SPIKE_KEY, SPIKE_VALUE = "actor/grad_norm", 1e3
Bytes2d = np.ndarray[Any, np.dtype[np.uint8]]


def values(seed: int, steps: int, spike_at: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Random walks, shape [steps, keys], with one spike of a single step."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(steps, len(KEYS))).cumsum(axis=0) / np.sqrt(steps) + rng.normal(
        size=(steps, len(KEYS))
    )
    table[:, KEYS.index("perf/time_per_step")] = 5 + rng.random(steps)
    table[:, KEYS.index("perf/total_num_tokens")] = 80_000
    table[:, KEYS.index("training/global_step")] = np.arange(1, steps + 1)
    table[spike_at, KEYS.index(SPIKE_KEY)] = SPIKE_VALUE
    return table


def line(step: int, row: list[float]) -> bytes:
    """One record as verl 0.9.1's FileLogger writes it."""
    return orjson.dumps({"step": step, "data": dict(zip(KEYS, row, strict=True))}) + b"\n"


def write_jsonl(path: Path, seed: int, steps: int) -> int:
    """Write a run's log; returns its size in bytes."""
    table = values(seed, steps, steps // 2 + seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        for begin in range(0, steps, 5000):
            rows = table[begin : begin + 5000].tolist()
            out.write(b"".join(line(begin + i + 1, row) for i, row in enumerate(rows)))
    return path.stat().st_size


def append_line(path: Path, step: int) -> None:
    """Add one record, as a live run does."""
    row = np.random.default_rng(step).normal(size=len(KEYS)).tolist()
    with path.open("ab") as out:
        out.write(line(step, row))


def _crc_table() -> np.ndarray[Any, np.dtype[np.uint32]]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    return table


def _masked_crc(rows: Bytes2d) -> Bytes2d:
    """TFRecord's masked CRC-32C of every row, as four little-endian bytes."""
    table = _crc_table()
    crc = np.full(len(rows), 0xFFFFFFFF, dtype=np.uint32)
    for column in range(rows.shape[1]):
        crc = table[(crc ^ rows[:, column]) & 0xFF] ^ (crc >> np.uint32(8))
    crc ^= np.uint32(0xFFFFFFFF)
    masked = ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)
    return masked.astype("<u4").view(np.uint8).reshape(-1, 4)


def _varints(numbers: np.ndarray[Any, np.dtype[np.int64]], width: int) -> Bytes2d:
    out = np.empty((len(numbers), width), dtype=np.uint8)
    for position in range(width):
        more = 0x80 if position < width - 1 else 0
        out[:, position] = ((numbers >> (7 * position)) & 0x7F) | more
    return out


def _record(body: Bytes2d) -> Bytes2d:
    length = np.frombuffer(struct.pack("<Q", body.shape[1]), dtype=np.uint8)
    lengths = np.broadcast_to(length, (len(body), 8))
    return np.hstack(
        [lengths, np.broadcast_to(_masked_crc(length[None]), (len(body), 4)), body, _masked_crc(body)]
    )


def write_tfevents(path: Path, seed: int, steps: int) -> int:
    """The same run as torch's SummaryWriter.add_scalar writes it: one event per scalar. Returns its size."""
    table = values(seed, steps, steps // 2 + seed).astype("<f4")
    path.parent.mkdir(parents=True, exist_ok=True)
    wall = struct.pack("<d", time.time())
    with path.open("wb") as out:
        version = np.frombuffer(b"\x09" + wall + b"\x1a\x0dbrain.Event:2", dtype=np.uint8)
        out.write(_record(version[None]).tobytes())
        for width, low, high in ((1, 1, 128), (2, 128, 16384), (3, 16384, 2097152)):
            for begin in range(low, min(high, steps + 1), 10_000):
                numbers = np.arange(begin, min(begin + 10_000, high, steps + 1), dtype=np.int64)
                out.write(
                    np.hstack([_scalar(k, numbers, width, table, wall) for k in range(len(KEYS))]).tobytes()
                )
    return path.stat().st_size


def _scalar(
    key: int, steps: np.ndarray[Any, np.dtype[np.int64]], width: int, table: np.ndarray[Any, Any], wall: bytes
) -> Bytes2d:
    tag = KEYS[key].encode()
    value = bytes([0x0A, len(tag)]) + tag + b"\x15"
    summary = bytes([0x2A, len(value) + 6, 0x0A, len(value) + 4]) + value
    head = np.frombuffer(b"\x09" + wall + b"\x10", dtype=np.uint8)
    middle = np.frombuffer(summary, dtype=np.uint8)
    cells = np.ascontiguousarray(table[steps - 1, key]).view(np.uint8).reshape(-1, 4)
    count = len(steps)
    return _record(
        np.hstack(
            [
                np.broadcast_to(head, (count, len(head))),
                _varints(steps, width),
                np.broadcast_to(middle, (count, len(middle))),
                cells,
            ]
        )
    )
