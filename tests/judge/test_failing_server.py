"""Every failure that a server can produce, and a run against one that fails on purpose."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import as_completed
from pathlib import Path

import pytest

from common.judge import CallFailed, JudgeError
from common.judge.failures import retry_after
from common.judge.metrics import totals
from common.judge.reward import judged

from .conftest import make
from .judge_server import TOKENS_IN, TOKENS_OUT, Act, Seen, error, flaky, score


def good(question: str) -> float:
    return int(question) % 11


@pytest.mark.parametrize(
    ("act", "kind", "calls"),
    [
        (error(500), "server", 3),
        (error(429), "rate_limit", 3),
        (Act(body="<html>"), "garbage", 3),
        (Act(body="{}"), "garbage", 3),
        (Act("no idea"), "unparsable", 3),
        (Act('{"score": 99}'), "out_of_range", 3),
        (Act("The answer is", finish="length"), "truncated", 1),
        (Act("", finish="content_filter"), "filtered", 1),
        (error(401), "auth", 1),
        (error(403), "auth", 1),
        (error(402), "payment", 1),
        (Act(status=429, body='{"error": {"code": "insufficient_quota", "message": "pay"}}'), "payment", 1),
        (error(400, "context too long"), "refused", 1),
        (error(404), "not_found", 1),
    ],
)
def test_kinds_of_failure_and_which_are_tried_again(
    serve: Callable, config: Callable, act: Act, kind: str, calls: int
) -> None:
    server = serve(lambda seen: act)
    service = make(config(server, max_retries=2))
    with pytest.raises(CallFailed) as caught:
        service.submit(service.judge.score("q", "a")).result()
    assert (caught.value.kind, len(server.seen)) == (kind, calls)
    assert service.judge.metrics.total["retries"] == calls - 1


def test_a_silent_server_and_no_server(serve: Callable, config: Callable) -> None:
    service = make(config(serve(lambda seen: Act(hang=True)), max_retries=0, timeout=0.2))
    with pytest.raises(CallFailed, match="timeout"):
        service.submit(service.judge.score("q", "a")).result()
    service = make(config("http://127.0.0.1:9/v1", max_retries=1))
    with pytest.raises(CallFailed, match=r"connection: .*\(2 attempts\)"):
        service.submit(service.judge.score("q", "a")).result()


def test_a_reply_without_score_is_answered_by_a_reminder(serve: Callable, config: Callable) -> None:
    server = serve(lambda seen: score(4) if seen.attempt == 2 else Act("Quite good!"))
    service = make(config(server))
    assert service.submit(service.judge.score("q", "a")).result().score == 4
    turns = server.seen[1].body["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert turns[2]["content"] == "Quite good!"
    assert "from 0 to 10" in turns[3]["content"]


def test_retry_after_is_honoured_by_all_requests(serve: Callable, config: Callable) -> None:
    """The first request is told to wait; nothing may arrive before that time is over."""
    wait = 0.4

    def act(seen: Seen) -> Act:
        return error(429, **{"retry-after-ms": f"{wait * 1000:.0f}"}) if len(server.seen) == 1 else score(5)

    server = serve(act)
    service = make(config(server, max_concurrency=1, backoff=0))
    futures = [service.submit(service.judge.score(str(n), "a")) for n in range(4)]
    assert [future.result().score for future in futures] == [5.0] * 4
    assert server.seen[1].time - server.seen[0].time >= wait * 0.98


def test_a_server_that_asks_for_too_much_patience(serve: Callable, config: Callable) -> None:
    server = serve(lambda seen: error(429, **{"retry-after": "3600"}))
    service = make(config(server, max_wait=10))
    with pytest.raises(CallFailed, match=r"asks to wait 3600 s, more than max_wait=10"):
        service.submit(service.judge.score("q", "a")).result()
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
    ],
)
def test_forms_of_retry_after(headers: dict, seconds: float | None) -> None:
    assert retry_after(headers) == seconds


@pytest.mark.slow
def test_three_in_ten_requests_fail_and_every_score_is_right(
    serve: Callable, config: Callable, tmp_path: Path
) -> None:
    """300 samples against a server that fails 30% of the time: nothing lost, nothing invented, all counted."""
    server = serve(flaky(seed=7, share=0.3, good=good))
    service = make(
        config(server, max_retries=30, timeout=1.5, max_concurrency=32),
        tmp_path,
        price={"input": 2, "output": 10},
    )
    futures = {service.submit(service.judge.score(str(n), f"answer {n}")): n for n in range(300)}
    for future in as_completed(futures):
        assert future.result().score == good(str(futures[future]))
    failed = len(server.seen) - 300
    assert failed > 80, "the server did not fail as often as it should"
    service.close()
    counted = totals(tmp_path)
    assert (counted["samples"], counted["cache_hits"]) == (300, 0)
    # A starved machine may time out more requests, some before the server reads them.
    assert counted["calls"] - counted["retries"] == 300
    assert counted["retries"] >= failed
    # Replies without a score cost tokens as well.
    replied = counted["tokens_out"] / TOKENS_OUT
    assert 300 < replied < counted["calls"]
    assert counted["tokens_in"] == replied * TOKENS_IN
    assert counted["cost"] == pytest.approx(replied * (TOKENS_IN * 2 + TOKENS_OUT * 10) / 1e6)


def reward(config: str, n: int, tmp_path: Path, **extra: object) -> dict:
    info = {"question": str(n), "max_global_steps": 3, "split": "train", **extra}
    return asyncio.run(judged(f"answer {n}", "gold", info, config=config, run_dir=str(tmp_path)))


def test_policy_raise_names_the_failure(serve: Callable, config: Callable, tmp_path: Path) -> None:
    path = config(serve(lambda seen: error(500)), max_retries=1)
    with pytest.raises(
        JudgeError, match=r"judge judge-1: server: HTTP 500: on purpose \(2 attempts\) \(on_failure"
    ):
        reward(path, 1, tmp_path)


def test_policy_constant_counts_and_marks(serve: Callable, config: Callable, tmp_path: Path) -> None:
    server = serve(lambda seen: error(500) if seen.question == "1" else score(8))
    path = config(server, max_retries=0, on_failure="constant", failure_score=0.25)
    results = [reward(path, n, tmp_path) for n in range(3)]
    assert [r["score"] for r in results] == [0.8, 0.25, 0.8]
    assert [r["judge_failed"] for r in results] == [0.0, 1.0, 0.0]
    assert all(set(r) == {"score", "judge_failed", "judge_cached", "judge_reason"} for r in results)
    make(path, tmp_path).close()
    line = totals(tmp_path)
    assert (line["samples"], line["failures"], line["failed_server"]) == (3, 1, 1)


@pytest.mark.slow
def test_a_dead_judge_stops_the_run_under_every_policy(
    serve: Callable, config: Callable, tmp_path: Path
) -> None:
    server = serve(lambda seen: score(8) if int(seen.question) < 15 else error(401, "key revoked"))
    path = config(server, on_failure="constant", max_failure_share=0.5)
    # 15 right ones, then 15 failures: the next is the first share over one half.
    says = r"\d+% of the last judgements failed.*max_failure_share=0.5.*key revoked"
    for n in range(30):
        reward(path, n, tmp_path)
    with pytest.raises(JudgeError, match=says):
        reward(path, 30, tmp_path)


def test_the_clock_of_a_hanging_judge_is_bounded(serve: Callable, config: Callable, tmp_path: Path) -> None:
    path = config(serve(lambda seen: Act(hang=True)), max_retries=1, timeout=0.2)
    begin = time.monotonic()
    with pytest.raises(JudgeError, match="timeout"):
        reward(path, 1, tmp_path)
    assert time.monotonic() - begin < 5
