"""Following files: cut lines, replaced files, event files, the index cache."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks import monitor_logs
from monitor import cache, tail, tfevents
from monitor.tail import LogTail


def read(path: Path, kind: str = "metrics") -> LogTail:
    log = LogTail(path, kind)
    log.refresh()
    log.advance()
    return log


def steps(log: LogTail) -> list[list[int]]:
    return [segment.steps.tolist() for segment in log.index.segments]


def test_only_whole_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step":1,"data":{"a":1}}\n{"step":2,"data":{"a":')
    log = read(path)
    assert steps(log) == [[1]]
    with path.open("ab") as out:
        out.write(b"25}}\n")
    assert log.refresh()
    assert log.advance()
    assert steps(log) == [[1, 2]]
    assert log.index.segments[0].points("a")[1].tolist() == [1, 25]
    assert log.index.bad_lines == 0


def test_truncated_or_replaced_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"".join(b'{"step":%d,"data":{"a":1}}\n' % i for i in range(100)))
    log = read(path)
    path.write_bytes(b'{"step":7,"data":{"a":2}}\n')  # as verl's file logger does on a restart
    log.refresh()
    log.advance()
    assert steps(log) == [[7]]
    other = tmp_path / "other"
    other.write_bytes(b"".join(b'{"step":%d,"data":{"a":3}}\n' % i for i in range(200)))
    other.replace(path)
    log.refresh()
    log.advance()
    assert steps(log) == [list(range(200))]


def test_rewritten_in_place_and_longer_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step":1,"data":{"a":1}}\n')
    log = read(path)
    with path.open("r+b") as out:  # same inode, more bytes, other content
        out.write(b'{"step":5,"data":{"a":9}}\n{"step":6,"data":{"a":9}}\n')
    log.refresh()
    log.advance()
    assert steps(log) == [[5, 6]]


def test_deleted_or_unreadable_file_says_so_and_keeps_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step":1,"data":{"a":1}}\n')
    log = read(path)
    path.unlink()
    log.refresh()
    assert "cannot be read" in log.error
    assert steps(log) == [[1]]


def test_line_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "CHUNK", 64)
    path = tmp_path / "console.log"
    path.write_bytes(b"x" * 1000 + b"\nstep:1 - a:1.0\n" + b"y" * 500 + b"\nstep:2 - a:2.0\n")
    assert steps(read(path, "console")) == [[1, 2]]


def test_endless_line_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "CHUNK", 64)
    monkeypatch.setattr(tail, "MAX_LINE", 256)
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\x00" * 5000 + b'\n{"step":2,"data":{"a":1}}\n')
    log = read(path)
    assert steps(log) == [[2]]
    assert log.index.bad_lines >= 1


def test_index_cache_gives_the_same_series_and_goes_on(tmp_path: Path) -> None:
    log_path, folder = tmp_path / "m.jsonl", tmp_path / "cache"
    monitor_logs.write_jsonl(log_path, 1, 6000)
    first = read(log_path)
    first.save_cache(folder)
    assert cache.cache_file(folder, log_path).is_file()
    monitor_logs.append_line(log_path, 6001)
    again = LogTail(log_path, "metrics")
    again.refresh()
    assert again.load_cache(folder)
    again.advance()
    assert again.index.segments[0].last_step == 6001
    for key in monitor_logs.KEYS:
        assert np.array_equal(
            again.index.segments[0].points(key)[1][:6000],
            first.index.segments[0].points(key)[1],
            equal_nan=True,
        )


def test_index_cache_of_another_content_or_damaged_is_not_used(tmp_path: Path) -> None:
    log_path, folder = tmp_path / "m.jsonl", tmp_path / "cache"
    monitor_logs.write_jsonl(log_path, 1, 4000)
    read(log_path).save_cache(folder)
    stored = cache.cache_file(folder, log_path)
    good = stored.read_bytes()
    for damage in (good[:-5], good[:100], b"", b"VTMONIDX" + b"\xff" * 50):
        stored.write_bytes(damage)
        assert cache.load(folder, log_path, "metrics") is None
    stored.write_bytes(good)
    assert cache.load(folder, log_path, "metrics") is not None
    content = bytearray(log_path.read_bytes())
    content[10] ^= 1
    with log_path.open("r+b") as out:
        out.write(content)
    assert cache.load(folder, log_path, "metrics") is None


def test_cache_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    log_path = tmp_path / "m.jsonl"
    monitor_logs.write_jsonl(log_path, 1, 4000)
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert not cache.save(blocked / "cache", log_path, read(log_path).index)


def test_event_files_are_read_without_tensorboard(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1.host"
    monitor_logs.write_tfevents(path, 3, 300)
    log = read(path, "tfevents")
    expected = monitor_logs.values(3, 300, 153).astype(np.float32)
    got_steps, values, _ = log.index.segments[0].points("actor/lr")
    assert got_steps.tolist() == list(range(1, 301))
    assert np.array_equal(values, expected[:, monitor_logs.KEYS.index("actor/lr")])


def test_event_files_agree_with_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path = tmp_path / "events.out.tfevents.1.host"
    monitor_logs.write_tfevents(path, 3, 200)
    events = accumulator.EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    for key in monitor_logs.KEYS:
        theirs = [(event.step, event.value) for event in events.Scalars(key)]
        got_steps, values, _ = read(path, "tfevents").index.segments[0].points(key)
        assert list(zip(got_steps.tolist(), values.tolist(), strict=True)) == theirs


def test_damaged_event_file_is_counted(tmp_path: Path) -> None:
    assert tfevents.parse(struct.pack("<Q", 1 << 40) + b"x" * 40)[0].bad_lines == 1
    body = b"\xff" * 20
    batch, used = tfevents.parse(struct.pack("<Q", len(body)) + b"crc4" + body + b"crc4")
    assert batch.bad_lines == 1
    assert used == 36


def test_five_gigabyte_log_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    with path.open("wb") as out:
        out.write(b"step:1 - a:1.0\n")
        out.seek(5 << 30)  # sparse: zero bytes take no disk
        out.write(b"\nstep:2 - a:2.0\n")
    log = LogTail(path, "console")
    log.refresh()
    calls = 0

    def budget() -> bool:
        nonlocal calls
        calls += 1
        return calls < 3

    log.advance(budget)  # gives the thread back after a bounded piece
    assert 0 < log.index.offset <= 3 * tail.MAX_LINE
    assert steps(log) == [[1]]
    assert path.stat().st_blocks * 512 < 1 << 20
