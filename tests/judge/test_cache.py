"""The cache: across processes, by content, and never the reason why a run dies."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.judge.cache import Cache

from .conftest import make
from .judge_server import Act, error, score

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import json, sys
from pathlib import Path
from common.judge.service import shared_service
service = shared_service(sys.argv[1], {}, sys.argv[2])
futures = [service.submit(service.judge.score(str(n), "a")) for n in range(40)]
print(json.dumps([f.result().score for f in futures]))
service.close()
"""


def in_processes(count: int, config: str, folder: Path) -> list[list[float]]:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, config, str(folder)], cwd=ROOT, stdout=subprocess.PIPE
        )
        for _ in range(count)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in started]
    assert [process.returncode for process in started] == [0] * count
    return [json.loads(output) for output in outputs]


@pytest.mark.slow
def test_processes_share_the_cache_and_a_second_run_is_free(
    serve: Callable, config: Callable, tmp_path: Path
) -> None:
    server = serve(lambda seen: score(int(seen.question) % 11))
    path = config(server)
    wanted = [float(n % 11) for n in range(40)]
    assert in_processes(3, path, tmp_path) == [wanted] * 3
    paid = len(server.seen)
    assert 40 <= paid <= 120
    with sqlite3.connect(tmp_path / "cache.sqlite3") as database:
        assert database.execute("SELECT count(*) FROM replies").fetchone() == (40,)
    service = make(path, tmp_path)
    assert [service.submit(service.judge.score(str(n), "a")).result().score for n in range(40)] == wanted
    assert len(server.seen) == paid
    assert service.judge.metrics.total["cache_hits"] == 40
    # Lines of four processes in one file, each whole.
    service.close()
    lines = [json.loads(line) for line in (tmp_path / "judge-metrics.jsonl").read_text().splitlines()]
    assert sum(line["samples"] for line in lines) == 160
    assert sum(line["calls"] for line in lines) == paid


def test_equal_samples_at_the_same_time_cost_one_call(serve: Callable, config: Callable) -> None:
    server = serve(lambda seen: score(6))
    service = make(config(server, cache="off"))
    futures = [service.submit(service.judge.score("q", "the same")) for _ in range(8)]
    assert sorted(future.result().cached for future in futures) == [False] + [True] * 7
    assert len(server.seen) == 1
    assert service.submit(service.judge.score("q", "the same")).result().cached is False  # off means off
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"model": "judge-1", "temperature": 0.5},
        {"max_tokens": 99},
        {"preset": "math"},
        {"score_range": [0, 20]},
    ],
)
def test_another_judge_wording_or_scale_is_another_judgement(
    serve: Callable, config: Callable, change: dict
) -> None:
    server = serve(lambda seen: score(6))
    first, second = make(config(server)), make(config(server, **change))
    for service in (first, first, second):
        service.submit(service.judge.score("q", "a")).result()
        service.flush()
    assert len(server.seen) == 2


def test_failures_are_not_cached(serve: Callable, config: Callable) -> None:
    server = serve(lambda seen: score(6) if seen.attempt > 1 else error(400))
    service = make(config(server))
    with pytest.raises(Exception, match="refused"):
        service.submit(service.judge.score("q", "a")).result()
    assert service.submit(service.judge.score("q", "a")).result().score == 6


def test_a_reward_range_changed_later_uses_the_cached_reply(serve: Callable, config: Callable) -> None:
    server = serve(lambda seen: score(6))
    for span, reward in (([0, 1], 0.6), ([-1, 1], 0.2)):
        service = make(config(server, reward_range=span))
        assert service.submit(service.judge.score("q", "a")).result().reward == pytest.approx(reward)
        service.close()
    assert len(server.seen) == 1


def test_a_broken_cache_costs_hits_and_not_the_run(
    serve: Callable, config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(lambda seen: score(6))
    (tmp_path / "broken.sqlite3").write_bytes(b"this is no database" * 100)
    service = make(config(server, cache=str(tmp_path / "broken.sqlite3")))
    assert service.submit(service.judge.score("q", "a")).result().score == 6
    assert capsys.readouterr().err.count("judge warning: the cache") == 1


def test_a_locked_cache_keeps_its_entries_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.judge.cache._BUSY_SECONDS", 0.05)
    cache = Cache(tmp_path / "c.sqlite3")
    other = sqlite3.connect(tmp_path / "c.sqlite3", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    cache.put("k", "v")
    cache.flush()
    assert cache.get("k") == "v"
    other.execute("ROLLBACK")
    cache.flush()
    assert other.execute("SELECT reply FROM replies").fetchall() == [("v",)]
    other.close()
    cache.close()


def test_cached_texts_hold_neither_key_nor_question(
    serve: Callable, config: Callable, tmp_path: Path
) -> None:
    server = serve(lambda seen: Act('{"score": 3}'))
    service = make(config(server))
    service.submit(service.judge.score("a private question", "a private answer")).result()
    service.close()
    data = (tmp_path / "cache.sqlite3").read_bytes()
    assert b"score" in data
    assert b"private" not in data
