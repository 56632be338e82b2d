"""The preflight check and the command line: each mistake is one clear line and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.judge.check import check_config
from common.judge.failures import JudgeError

from .conftest import KEY, KEY_ENV
from .judge_server import Act, error, score

ROOT = Path(__file__).resolve().parents[2]


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "common.judge", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_judge_that_works(serve: Callable, config: Callable) -> None:
    server = serve(lambda seen: score(9))
    done = cli("check", "--config", config(server))
    assert (done.returncode, done.stderr) == (0, "")
    assert "judge ok: judge-1 at http://127.0.0.1" in done.stdout
    assert "score 9 of 0 to 10 (50 + 7 tokens)" in done.stdout
    assert server.seen[0].question.startswith("What is 7 + 24?")
    assert (server.seen[0].answer, server.seen[0].reference) == ("31", "31")


def test_no_key_is_one_line_and_exit_code_2(
    serve: Callable, config: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(serve(lambda seen: score(9)))
    monkeypatch.delenv(KEY_ENV)
    done = cli("check", "--config", path)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: the judge's API key is missing: export {KEY_ENV}=... "
        "(provider custom; another variable's name goes into api_key_env)\n"
    )


@pytest.mark.parametrize(
    ("act", "more", "says"),
    [
        (score(9), {"model": "judge-2"}, r"has no model 'judge-2'; did you mean 'judge-1'\? .*HTTP 404"),
        (score(9), {"base_url": "{root}"}, r"check base_url \(most need /v1 at the end\)"),
        (score(9), {"base_url": "http://127.0.0.1:9/v1"}, r"cannot be reached: is base_url right"),
        (score(9), {"base_url": "http://no-such-host.invalid/v1"}, r"cannot be reached"),
        (score(9), {"preset": "maths"}, r"preset 'maths' does not exist, did you mean 'math'\?"),
        (Act(body="<html>Welcome</html>", headers={"content-type": "text/html"}), {}, r"no API answered at this addr"),
        (Act(hang=True), {"timeout": 0.2}, r"no answer within 0.2 s"),
        (error(401, "bad key"), {}, r"the key in TEST_JUDGE_KEY is not accepted \(HTTP 401: bad key\)"),
        (error(429), {}, r"refuses more requests now"),
        (error(402), {}, r"no quota left"),
        (error(400, "temperature is not supported"), {}, r"check temperature, .*temperature is not supported"),
        (Act("A fine answer!"), {}, r"without a score: use a stronger model"),
        (Act("Let me th", finish="length"), {}, r"max_tokens=512 without a score: raise it"),
        (score(77), {}, r"does not keep to score_range"),
    ],
)  # fmt: skip
def test_what_a_check_finds(serve: Callable, config: Callable, act: Act, more: dict, says: str) -> None:
    server = serve(lambda seen: act)
    more = {
        key: str(value).format(root=server.url.removesuffix("/v1")) if key == "base_url" else value
        for key, value in more.items()
    }
    with pytest.raises(JudgeError, match=says) as caught:
        check_config(config(server, **more))
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.slow
def test_score_by_hand(serve: Callable, config: Callable, tmp_path: Path) -> None:
    server = serve(lambda seen: score(8))
    words = (
        "score",
        "--config",
        config(server),
        "--question",
        "2+2?",
        "--answer",
        "4",
        "--set",
        "preset=math",
    )
    done = cli(*words)
    assert done.stdout.splitlines() == [
        "score   8 of 0 to 10", "reward  0.8", "reason  because", "tokens  50 in, 7 out"
    ]  # fmt: skip
    again = json.loads(cli(*words, "--json").stdout)
    assert (again["score"], again["cached"]) == (8.0, True)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("check", "--config", "/none.yaml"), "error: judge configuration /none.yaml does not exist\n"),
        (("usage", "/tmp"), "error: /tmp holds no judge-metrics.jsonl: no judge was called in that run\n"),
        (("presets", "qualty"), "error: preset 'qualty' does not exist, did you mean 'quality'?"),
    ],
)
def test_other_mistakes(words: tuple[str, ...], says: str) -> None:
    done = cli(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1
