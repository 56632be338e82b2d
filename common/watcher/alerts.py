"""Messages to a webhook: Slack, Feishu/Lark, DingTalk, or plain JSON for anything else.

The address is a secret, since whoever has it can post: it comes from the environment (WATCH_WEBHOOK), and is never
printed, logged or passed on. A webhook that fails is reported once per message and harms nothing.
"""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

VARIABLE = "WATCH_WEBHOOK"
FORMAT_VARIABLE = "WATCH_WEBHOOK_FORMAT"
WAITING = 20  # messages; more than that at once is a storm

_HOSTS = {
    "hooks.slack.com": "slack",
    "open.feishu.cn": "feishu",
    "open.larksuite.com": "feishu",
    "oapi.dingtalk.com": "dingtalk",
}
FORMATS = ("slack", "feishu", "dingtalk", "json")


def format_of(url: str, wanted: str = "") -> str:
    """Which payload a webhook takes: *wanted*, else by its host, else "json".

    Raises:
        ValueError: *wanted* is none of FORMATS.
    """
    if wanted and wanted not in FORMATS:
        raise ValueError(f"{FORMAT_VARIABLE}={wanted} must be one of {', '.join(FORMATS)}")
    try:
        return wanted or _HOSTS.get(urlsplit(url).hostname or "", "json")
    except ValueError:  # no address at all, and its text quotes it; sending says so
        return "json"


def payload(kind: str, text: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The JSON body of a message; *fields* (run, event ...) go along where the format has room for them."""
    if kind == "slack":
        return {"text": text}
    if kind == "feishu":
        return {"msg_type": "text", "content": {"text": text}}
    if kind == "dingtalk":
        return {"msgtype": "text", "text": {"content": text}}
    return {"text": text, **fields}


def _refusal(kind: str, body: bytes) -> str:
    """Feishu and DingTalk answer 200 and put the error into the body."""
    if kind not in ("feishu", "dingtalk"):
        return ""
    try:
        answer = json.loads(body)
        code = answer.get("code", answer.get("errcode", 0))
        return f"code {code}: {answer.get('msg') or answer.get('errmsg')}" if code else ""
    except (ValueError, AttributeError):
        return ""


def post(url: str, kind: str, text: str, fields: dict[str, Any], timeout: float) -> str:
    """Send one message; returns what went wrong in words that do not hold the address, "" when nothing did."""
    body = json.dumps(payload(kind, text, fields), ensure_ascii=False).encode()
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
        if request.type not in ("http", "https"):
            return f"{VARIABLE} is no http or https address"
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return _refusal(kind, answer.read(4096))
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except urllib.error.URLError as error:
        return f"{type(error.reason).__name__}: {error.reason}" if error.reason != url else "not reachable"
    except (http.client.HTTPException, ValueError) as error:
        return type(error).__name__  # the text of these may quote the address
    except OSError as error:
        return f"{type(error).__name__}: {error}"


class Webhook:
    """Sends messages in a thread of its own, in order. Without an address it does nothing.

    Args:
        url: the address, "" for none.
        wanted: format, "" = by the host.
        report: told what went wrong.
    """

    def __init__(self, url: str, wanted: str, timeout: float, report: Callable[[str], None]) -> None:
        self.url, self.timeout, self.report = url, timeout, report
        self.kind = format_of(url, wanted)
        self._messages: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True, name="webhook")
        if url:
            self._thread.start()

    def send(self, text: str, **fields: Any) -> None:
        """Queue a message."""
        if not self.url:
            return
        try:
            self._messages.put_nowait((text, fields))
        except queue.Full:
            self.report(f"webhook: more than {WAITING} messages waiting, one was left out")

    def close(self) -> None:
        """Wait for what is queued, one timeout at most."""
        end = time.monotonic() + self.timeout
        with self._messages.all_tasks_done:
            while self._messages.unfinished_tasks and (left := end - time.monotonic()) > 0:
                self._messages.all_tasks_done.wait(left)

    def _work(self) -> None:
        while True:
            text, fields = self._messages.get()
            try:
                if problem := post(self.url, self.kind, text, fields, self.timeout):
                    self.report(f"webhook: the message was not delivered ({problem})")
            finally:
                self._messages.task_done()
