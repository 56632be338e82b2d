"""Anthropic's dialect through its own client."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from common.judge import CallFailed
from common.judge.check import check_config

from .conftest import KEY, make
from .judge_server import Act, error, flaky, score


def test_a_judgement_in_anthropics_shape(serve: Callable, config: Callable) -> None:
    server = serve(lambda seen: score(8))
    path = config(server.url.removesuffix("/v1"), provider="anthropic")
    service = make(path)
    verdict = service.submit(service.judge.score("why?", "so", "ref")).result()
    assert (verdict.score, verdict.reason) == (8.0, "because")
    seen = server.seen[0]
    assert KEY in (seen.headers.get("authorization", "") + seen.headers.get("x-api-key", ""))
    assert (seen.question, seen.answer, seen.reference) == ("why?", "so", "ref")
    assert "strict grader" in seen.body["system"]
    assert [turn["role"] for turn in seen.body["messages"]] == ["user"]
    assert (seen.body["max_tokens"], seen.body["temperature"]) == (512, 0.0)
    total = service.judge.metrics.total
    assert (total["tokens_in"], total["tokens_out"]) == (50, 7)
    assert str(check_config(path)).startswith("judge ok")


@pytest.mark.parametrize(
    ("act", "kind"),
    [(error(401), "auth"), (error(529), "server"), (Act("Hm", finish="length"), "truncated"),
     (Act("", finish="refusal"), "filtered"), (Act(body="<html>"), "garbage"), (Act(body="{}"), "garbage")],
)  # fmt: skip
def test_failures_in_anthropics_shape(serve: Callable, config: Callable, act: Act, kind: str) -> None:
    server = serve(lambda seen: act)
    service = make(config(server.url.removesuffix("/v1"), provider="anthropic", max_retries=1))
    with pytest.raises(CallFailed) as caught:
        service.submit(service.judge.score("q", "a")).result()
    assert caught.value.kind == kind


@pytest.mark.slow
def test_a_failing_server_in_anthropics_shape(serve: Callable, config: Callable) -> None:
    server = serve(flaky(seed=3, share=0.3, good=lambda question: int(question) % 11))
    url = server.url.removesuffix("/v1")
    service = make(config(url, provider="anthropic", max_retries=30, timeout=1.5, max_concurrency=16))
    futures = [service.submit(service.judge.score(str(n), "a")) for n in range(60)]
    assert [future.result().score for future in futures] == [float(n % 11) for n in range(60)]
    assert len(server.seen) > 70
