"""Webhook messages, against a real HTTP server on this machine."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.watcher.alerts import Webhook, format_of, payload, post
from common.watcher.settings import load
from common.watcher.watch import watch

from .conftest import Paper

SECRET = "T0PSECRET"


@dataclass
class Server:
    """Answers as told and remembers what it was sent."""

    url: str = ""
    status: int = 200
    answer: bytes = b"ok"
    bodies: list[dict] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(state.status)
            self.end_headers()
            self.wfile.write(state.answer)

        def log_message(self, *_: object) -> None:
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}/services/{SECRET}"
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("https://hooks.slack.com/services/x", "slack"),
        ("https://open.feishu.cn/open-apis/bot/v2/hook/x", "feishu"),
        ("https://open.larksuite.com/open-apis/bot/v2/hook/x", "feishu"),
        ("https://oapi.dingtalk.com/robot/send?access_token=x", "dingtalk"),
        ("https://example.org/hook", "json"),
    ],
)
def test_format_by_host(url: str, kind: str) -> None:
    assert format_of(url) == kind
    assert format_of(url, "slack") == "slack"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("slack", {"text": "hi"}),
        ("feishu", {"msg_type": "text", "content": {"text": "hi"}}),
        ("dingtalk", {"msgtype": "text", "text": {"content": "hi"}}),
        ("json", {"text": "hi", "run": "grpo/r", "event": "stall"}),
    ],
)
def test_each_format_is_sent_as_its_service_reads_it(server: Server, kind: str, body: dict) -> None:
    fields = {"run": "grpo/r", "event": "stall"}
    assert payload(kind, "hi", fields) == body
    assert post(server.url, kind, "hi", fields, 5) == ""
    assert server.bodies == [body]


def test_what_goes_wrong_is_said_without_the_address(server: Server) -> None:
    server.status = 404
    assert post(server.url, "slack", "hi", {}, 5) == "HTTP 404"
    server.status, server.answer = 200, b'{"code": 19001, "msg": "param invalid"}'
    assert post(server.url, "feishu", "hi", {}, 5) == "code 19001: param invalid"
    server.answer = b'{"errcode": 310000, "errmsg": "keywords not in content"}'
    assert post(server.url, "dingtalk", "hi", {}, 5) == "code 310000: keywords not in content"
    for url in (
        f"http://127.0.0.1:9/{SECRET}",
        f"file:///{SECRET}",
        SECRET,
        f"http://[{SECRET}",
        f"http:///{SECRET}",
        f"http://127.0.0.1:9/a b {SECRET}",
        f"https://127.0.0.1:{SECRET}/x",
        f"127.0.0.1/{SECRET}",
    ):
        problem = post(url, "json", "hi", {}, 5)
        assert problem
        assert SECRET not in problem


def test_a_failing_webhook_is_reported_and_the_next_message_still_sent(server: Server) -> None:
    said: list[str] = []
    hook = Webhook(server.url, "json", 5, said.append)
    server.status = 500
    hook.send("one")
    hook.close()
    server.status = 200
    hook.send("two")
    hook.close()
    assert said == ["webhook: the message was not delivered (HTTP 500)"]
    assert [body["text"] for body in server.bodies] == ["one", "two"]


def test_what_is_no_http_answer_ends_no_thread() -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as door:

        def answer() -> None:
            for _ in range(2):
                with door.accept()[0] as line:
                    line.recv(4096)
                    line.sendall(b"garbage\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        hook = Webhook(f"http://127.0.0.1:{door.getsockname()[1]}/{SECRET}", "", 5, said.append)
        hook.send("one")
        hook.send("two")
        hook.close()
        thread.join()
    assert said == ["webhook: the message was not delivered (BadStatusLine)"] * 2


def test_an_address_that_cannot_be_read_is_json() -> None:
    assert format_of(f"http://[{SECRET}") == "json"


def test_the_address_is_not_passed_on(paper: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCH_WEBHOOK", f"http://127.0.0.1:9/{SECRET}")
    paper.record(knobs={"ON_SAVE": "env", "SAVE_FREQ": "5"})
    looks = iter([False, True])

    def ended(_: float) -> bool:
        if not paper.checkpoints.exists():
            paper.checkpoint(5)
        return next(looks)

    watch(paper.folder, "no-such-tag", 4242, load(), ended)
    printed = (paper.folder / "on_save.log").read_text()
    assert "PATH=" in printed
    assert SECRET not in printed


def test_a_run_with_a_webhook(paper: Paper, server: Server) -> None:
    """Rule, stall and end each reach the server; the address is in no file of the run and on no line."""
    paper.record(knobs={"STOP_ON": "", "SAVE_FREQ": "0"})
    watch = paper.start(server.url)
    for number in range(1, 12):
        paper.step(number, 10.0, actor__kl_loss=0.9)
        watch.tick()
    paper.clock += 60
    watch.tick()
    paper.record(state="failed", failure={"what": "the disk is full"})
    watch.finish()
    assert [body["event"] for body in server.bodies] == ["rule", "stall", "failed"]
    assert server.bodies[0]["rule"] == "kl_high"
    assert server.bodies[2]["text"] == "[verl_training] grpo/r: failed at step 11 of 1000: the disk is full"
    written = "".join(path.read_text() for path in paper.folder.rglob("*") if path.is_file())
    assert SECRET not in written + "".join(paper.said)


def test_info_rules_are_not_sent(paper: Paper, server: Server) -> None:
    watch = paper.start(server.url)
    for number in range(1, 45):
        paper.step(number, 10.0, actor__kl_loss=1e-7)
        watch.tick()
    watch.hook.close()
    assert [event["rule"] for event in paper.events()] == ["kl_low"]
    assert server.bodies == []


def test_without_an_address_nothing_is_started(tmp_path: Path) -> None:
    hook = Webhook("", "", 5, lambda _: None)
    hook.send("hi")
    hook.close()
    assert not hook._thread.is_alive()
