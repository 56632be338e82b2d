"""The key reaches the server and nothing else: no log, file, exception or cache."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from common.judge.check import check_config
from common.judge.failures import JudgeError, redact
from common.reward_functions.errors import RewardError
from common.reward_functions.loading import load_reward
from common.reward_functions.training import TrainingReward

from .conftest import KEY, make
from .judge_server import Act, Seen, error, score

ROOT = Path(__file__).resolve().parents[2]


def echoing(seen: Seen) -> Act:
    """The worst server: it repeats the whole request in its error."""
    if seen.question == "fine":
        return score(7)
    return error(401, f"Incorrect API key provided: {seen.headers['authorization']}")


def test_a_server_that_repeats_the_key(
    serve: Callable, config: Callable, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve(echoing)
    path = config(server)
    run_dir = tmp_path / "run"
    bound = load_reward(
        str(ROOT / "ppo/api_reward.py"), "compute_score", {"config": path, "run_dir": str(run_dir)}
    )
    reward = TrainingReward(bound, "raise", run_dir)
    passed = {"data_source": "toy", "solution_str": "a", "ground_truth": "g"}
    asyncio.run(reward.score_async({**passed, "extra_info": {"question": "fine"}}))
    with pytest.raises(RewardError, match="Incorrect API key") as caught:
        asyncio.run(reward.score_async({**passed, "extra_info": {"question": "bad"}}))
    with pytest.raises(JudgeError) as checked:
        check_config(path)
    make(path, run_dir).close()
    assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {KEY}"}
    printed = capfd.readouterr()
    texts = [printed.out, printed.err, str(caught.value), str(checked.value)]
    texts += ["".join(traceback.format_exception(found.value)) for found in (caught, checked)]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.name.split("-")[0] for file in files} >= {
        "reward_errors",
        "reward_parts",
        "judge",
        "cache.sqlite3",
    }
    for text in texts + [file.read_bytes().decode("latin-1") for file in files]:
        assert KEY not in text
        assert "SECRET" not in text
        assert "Bearer sk" not in text


def test_a_key_that_no_header_can_carry(
    serve: Callable, config: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(serve(echoing))
    for bad in ("sk-broken\nkey-SECRET", "sk-ключ-SECRET"):
        monkeypatch.setenv("TEST_JUDGE_KEY", bad)
        with pytest.raises(JudgeError) as caught:
            check_config(path)
        assert "SECRET" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "text",
    [
        "key is sk-proj-abcdefghijklmnop",
        "Authorization: Bearer abc.def",
        "AIzaSyA0123456789abcdef",
        "sk-ab****wxyz123456",
    ],
)
def test_what_looks_like_a_key_is_replaced_too(text: str) -> None:
    assert "[key]" in redact(text)
    assert not any(word in redact(text) for word in ("abcdefgh", "abc.def", "SyA01234", "wxyz"))
