"""The reward model: every key of its settings, scores against transformers' own, replies and bad replies."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from tiny_model import tiny_model
from tiny_scorer import tiny_scorer

from common.reward_functions.errors import RewardError
from ppo.model_reward import compute_score, graded
from ppo.reward_model import Settings, load_settings

pytestmark = pytest.mark.slow  # imports torch and transformers
TURNS = [{"role": "user", "content": "What is 2 + 3?"}]


def settings_file(folder: Path, **keys: Any) -> Path:
    path = folder / "reward_model.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def score(config: Path, model: Path, answer: str = "5", **more: Any) -> dict[str, Any]:
    return asyncio.run(
        compute_score(
            "sums", answer, "5", {"raw_prompt": TURNS}, config=str(config), model=str(model), **more
        )
    )


@pytest.fixture(scope="module")
def one_label(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_scorer(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_scorer(tmp_path_factory.mktemp("two"), labels=2)


def reference_logits(model: Path, answer: str) -> list[float]:
    """What transformers says to the conversation, straight."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = [*TURNS, {"role": "assistant", "content": answer}]
    tokens = tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")
    scorer = AutoModelForSequenceClassification.from_pretrained(model)
    return scorer(**tokens).logits[0].tolist()


@pytest.mark.parametrize("answer", ["5", "I do not know", ""])
def test_classifier_on_the_cpu_scores_as_transformers_does(
    one_label: Path, two_labels: Path, tmp_path: Path, answer: str
) -> None:
    config = settings_file(tmp_path)
    for model in (one_label, two_labels):
        assert score(config, model, answer)["score"] == pytest.approx(
            reference_logits(model, answer)[-1], abs=1e-5
        )


def test_output_scale_and_clip_by_hand() -> None:
    assert Settings().reward([1.5]) == 1.5
    assert Settings().reward([0.5, 2.0]) == 2.0
    assert Settings(output="margin").reward([0.5, 2.0]) == 1.5
    assert Settings(output="probability").reward([0.0]) == 0.5
    assert Settings(output="probability").reward([-1000.0, 1000.0]) == 1.0
    assert Settings(output="probability").reward([1000.0]) == 1.0
    assert Settings(output="probability").reward([-1000.0]) == 0.0
    assert Settings(scale=(-2.0, 2.0)).reward([1.0]) == 0.75
    assert Settings(scale=(-2.0, 2.0), clip=(0.0, 1.0)).reward([9.0]) == 1.0


def test_keys_of_a_classifier_reach_the_score(two_labels: Path, tmp_path: Path) -> None:
    bad, good = reference_logits(two_labels, "5")
    for keys, expected in [
        ({"output": "margin"}, good - bad),
        ({"scale": [-10, 10]}, (good + 10) / 20),
        ({"clip": [-0.01, 0.01]}, max(-0.01, min(0.01, good))),
    ]:
        folder = tmp_path / next(iter(keys))
        folder.mkdir()
        assert score(settings_file(folder, **keys), two_labels)["score"] == pytest.approx(expected, abs=1e-5)


def test_mix_is_the_weighted_sum_and_shows_its_parts(one_label: Path, tmp_path: Path) -> None:
    from ppo import mix_reward

    root = Path(__file__).resolve().parents[2]
    kwargs = {"config": str(settings_file(tmp_path)), "model": str(one_label)}
    parts = [
        {
            "reward": f"{root}/grpo/reward_func.py:compute_score",
            "name": "function",
            "weight": 2.0,
            "kwargs": {},
        },
        {
            "reward": f"{root}/ppo/model_reward.py:compute_score",
            "name": "model",
            "weight": -0.5,
            "kwargs": kwargs,
        },
    ]
    found = asyncio.run(mix_reward.compute_score("sums", "5", "5", {"raw_prompt": TURNS}, parts=parts))
    logit = reference_logits(one_label, "5")[0]
    assert found["function"] == found["acc"] == 1.0
    assert found["model"] == pytest.approx(logit, abs=1e-5)
    assert found["score"] == pytest.approx(2.0 - 0.5 * logit, abs=1e-5)


def test_pair_over_max_length_is_refused_not_cut(one_label: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"tokens, more than max_length: 20"):
        score(settings_file(tmp_path, max_length=20), one_label)


def test_missing_question(one_label: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="no 'raw_prompt'"):
        asyncio.run(compute_score("sums", "5", config=str(settings_file(tmp_path)), model=str(one_label)))


def test_chat_model_on_the_cpu_writes_a_reply_that_random_weights_cannot_grade(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "writer")
    strict = settings_file(tmp_path, judge={"max_tokens": 4})
    with pytest.raises(RewardError, match="on_failure: raise"):
        score(strict, model)
    (tmp_path / "lenient").mkdir()
    lenient = settings_file(
        tmp_path / "lenient", judge={"max_tokens": 4, "on_failure": "constant", "failure_score": 0.25}
    )
    assert score(lenient, model) == {"score": 0.25, "raw": 0.0, "unreadable": 1.0}


def test_grades_are_read_and_mapped(tmp_path: Path) -> None:
    plain = load_settings(settings_file(tmp_path))
    assert graded(plain, '{"reason": "right", "score": 8}')["score"] == 0.8
    own = {"score_range": [1, 5], "reward_range": [-1, 1], "score_pattern": r"GRADE=(\d)"}
    assert graded(load_settings(settings_file(tmp_path, judge=own)), "GRADE=4")["score"] == 0.5
    with pytest.raises(RewardError):
        graded(plain, "a fine answer")


class Server(BaseHTTPRequestHandler):
    """The three endpoints of verl's reward servers; records what it was asked."""

    asked: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    failures = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append((self.path, body))
        if type(self).failures:
            type(self).failures -= 1
            return self._answer(500, {"error": "busy"})
        if body["model"] == "refused":
            return self._answer(400, {"error": "input is too long"})
        answers = {
            "/classify": {"data": [{"probs": [-1.0, 2.5]}]},
            "/v1/embeddings": {"data": [{"embedding": [0.75]}]},
            "/v1/chat/completions": {"choices": [{"message": {"content": "Score: 7/10"}}]},
        }
        return self._answer(200, answers[self.path])

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_args: Any) -> None:
        return None


@pytest.fixture
def address() -> Iterator[str]:
    Server.asked, Server.failures = [], 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def served(config: Path, model: Path, address: str, answer: str = "5") -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return score(
        config, model, answer, served=True, reward_router_address=address, reward_model_tokenizer=tokenizer
    )


def test_served_classifier_is_asked_as_verl_asks_it(two_labels: Path, tmp_path: Path, address: str) -> None:
    Server.failures = 1  # the first request meets a busy server
    found = served(settings_file(tmp_path, output="margin"), two_labels, address)
    assert found == {"score": 3.5, "raw": 2.5, "unreadable": 0.0}
    path, body = Server.asked[-1]
    assert path == "/classify"
    assert body["use_activation"] is False
    assert body["input"].endswith("<|im_start|>assistant\n5<|im_end|>\n")
    sglang = settings_file(tmp_path, server={"engine": "sglang"})
    (tmp_path / "s").mkdir()
    assert served(sglang.rename(tmp_path / "s" / sglang.name), two_labels, address)["score"] == 0.75


def test_served_chat_model_sees_question_answer_and_reference(tmp_path: Path, address: str) -> None:
    model = tiny_model(tmp_path / "writer")
    (tmp_path / "ask.txt").write_text("Q={question} A={answer} R={reference}")
    judge = {"template": "ask.txt", "temperature": 0.5, "max_tokens": 9, "system": "Grade."}
    found = served(settings_file(tmp_path, judge=judge), model, address, answer="five {question}")
    assert found == {"score": 0.7, "raw": 7.0, "unreadable": 0.0}
    path, body = Server.asked[-1]
    assert path == "/v1/chat/completions"
    assert body["messages"][-1]["content"] == "Q=What is 2 + 3? A=five {question} R=5"
    assert body["messages"][0]["content"] == "Grade."
    assert (body["temperature"], body["max_tokens"]) == (0.5, 9)


def test_a_request_that_the_server_refuses_is_an_error_with_its_words(
    one_label: Path, tmp_path: Path, address: str
) -> None:
    from transformers import AutoTokenizer

    from ppo import model_reward

    tokenizer = AutoTokenizer.from_pretrained(one_label)
    with pytest.raises(RewardError, match=r"HTTP 400: .*input is too long"):
        asyncio.run(
            model_reward._server_logits(Settings(), TURNS, "refused", address, tokenizer),
        )
    assert len(Server.asked) == 1
