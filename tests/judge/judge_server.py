"""A judge's endpoint on this machine, in the shape of OpenAI's and Anthropic's APIs, that fails as it is told to."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "judge-1"
TOKENS_IN, TOKENS_OUT = 50, 7
_SECTION = {
    name: re.compile(f"<{name}>\n(.*?)\n</{name}>", re.DOTALL) for name in ("question", "answer", "reference")
}


@dataclass(frozen=True)
class Act:
    """What the server does with one request: a status and a body, or nothing until it closes (`hang`)."""

    text: str = ""
    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    finish: str = "stop"


@dataclass
class Seen:
    """One request as it arrived."""

    question: str
    answer: str
    reference: str
    attempt: int
    headers: dict[str, str]
    body: dict[str, Any]
    time: float


def score(value: float) -> Act:
    return Act(json.dumps({"reason": "because", "score": value}))


def error(status: int, message: str = "on purpose", **headers: str) -> Act:
    return Act(status=status, body=json.dumps({"error": {"message": message}}), headers=headers)


def flaky(seed: int, share: float, good: Callable[[str], float]) -> Callable[[Seen], Act]:
    """Fails `share` of all requests: 500, 429, no answer, no JSON, no score. By seed, question and attempt only."""

    def act(seen: Seen) -> Act:
        chance = random.Random(f"{seed}/{seen.question}/{seen.attempt}")
        if chance.random() >= share:
            return score(good(seen.question))
        return chance.choice(
            [
                error(500),
                error(429, **{"retry-after-ms": "5"}),
                Act(hang=True),
                Act(body="<html>Bad gateway</html>"),
                Act("I would rather not say."),
            ]
        )

    return act


class JudgeServer(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1; `seen`, `peak` and `starts` say what reached it."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, act: Callable[[Seen], Act]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.act = act
        self.seen: list[Seen] = []
        self.attempts: Counter[str] = Counter()
        self.running = self.peak = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.hold: threading.Barrier | None = None

    def handle_error(self, *_: Any) -> None:
        """Clients that gave up waiting are no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JudgeServer

    def do_GET(self) -> None:
        if self.path.split("?")[0] == "/v1/models":
            self._send(200, json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}))
        else:
            self._send(404, "<html>Not found</html>", {"content-type": "text/html"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path not in ("/v1/chat/completions", "/v1/messages"):
            self._send(404, "<html>Not found</html>", {"content-type": "text/html"})
            return
        if body["model"] != MODEL:
            message = {
                "error": {
                    "message": f"The model `{body['model']}` does not exist.",
                    "code": "model_not_found",
                }
            }
            self._send(404, json.dumps(message))
            return
        user = next(turn["content"] for turn in body["messages"] if turn["role"] == "user")
        texts = {name: (found[1] if (found := form.search(user)) else "") for name, form in _SECTION.items()}
        server = self.server
        with server.lock:
            server.attempts[user] += 1
            seen = Seen(
                **texts,
                attempt=server.attempts[user],
                headers={k.lower(): v for k, v in self.headers.items()},
                body=body,
                time=time.monotonic(),
            )
            server.seen.append(seen)
            server.running += 1
            server.peak = max(server.peak, server.running)
        try:
            if server.hold is not None:
                server.hold.wait(20)
            self._do(server.act(seen))
        finally:
            with server.lock:
                server.running -= 1

    def _do(self, act: Act) -> None:
        if act.hang:
            self.server.closing.wait(60)
            self.close_connection = True
            return
        if act.body is not None:
            self._send(act.status, act.body, act.headers)
        elif self.path == "/v1/messages":
            stop = {"stop": "end_turn", "length": "max_tokens"}.get(act.finish, act.finish)
            answer = {
                "id": "m", "type": "message", "role": "assistant", "model": MODEL, "stop_reason": stop,
                "content": [{"type": "text", "text": act.text}],
                "usage": {"input_tokens": TOKENS_IN, "output_tokens": TOKENS_OUT},
            }  # fmt: skip
            self._send(act.status, json.dumps(answer), act.headers)
        else:
            message = {"role": "assistant", "content": act.text}
            answer = {
                "id": "c", "object": "chat.completion", "created": 1, "model": MODEL,
                "choices": [{"index": 0, "message": message, "finish_reason": act.finish}],
                "usage": {"prompt_tokens": TOKENS_IN, "completion_tokens": TOKENS_OUT, "total_tokens": 57},
            }  # fmt: skip
            self._send(act.status, json.dumps(answer), act.headers)

    def _send(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
        data = body.encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def serving(act: Callable[[Seen], Act]) -> Iterator[JudgeServer]:
    server = JudgeServer(act)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
