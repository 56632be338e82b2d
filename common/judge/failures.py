"""What can go wrong with a judge: a user's mistake, or a call that failed. No message ever holds a key."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from common.launcher.errors import UserError

# Kinds that another attempt may mend; the others fail at once.
RETRYABLE = ("timeout", "connection", "rate_limit", "server", "garbage", "unparsable", "out_of_range")
_KEY_LIKE = re.compile(
    r"\b(?:(?:sk|key|xai|gsk)[-_][-_A-Za-z0-9*]{8,}|AIza[-_A-Za-z0-9]{12,}|(?i:bearer)\s+\S+)"
)
_LONGEST_MESSAGE = 300


class JudgeError(UserError):
    """A mistake in the judge's configuration or environment, said in one line."""


class CallFailed(Exception):  # noqa: N818 (a state that callers handle by policy, not a programming error)
    """One judgement could not be had.

    Attributes:
        kind: timeout, connection, rate_limit, server, garbage (no protocol answer), unparsable, out_of_range,
            auth, not_found, payment, refused, filtered, truncated or no_mean.
        retry_after: seconds the server asked to wait, None where it did not say.
        reply: the judge's text where there was one.
    """

    def __init__(self, kind: str, message: str, retry_after: float | None = None, reply: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after
        self.reply = reply

    @property
    def retryable(self) -> bool:
        return self.kind in RETRYABLE


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` on one line, shortened, with keys and what looks like one replaced."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[key]")
    text = " ".join(_KEY_LIKE.sub("[key]", text).split())
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."


def classify(error: Exception, secrets: Iterable[str]) -> CallFailed | None:
    """An exception of the openai or anthropic client (same class names in both) as a failure; None: not theirs."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, asyncio.TimeoutError) or "APITimeoutError" in names:
        return CallFailed("timeout", "no answer within the timeout")
    if "APIResponseValidationError" in names or isinstance(error, ValueError):
        return CallFailed("garbage", redact(f"the reply is no API answer: {error}", secrets))
    if "APIStatusError" in names:
        return _by_status(error, secrets)
    if "APIConnectionError" in names:
        cause = error.__cause__ or error
        return CallFailed("connection", redact(f"{cause or type(cause).__name__}", secrets))
    return None


def _by_status(error: Any, secrets: Iterable[str]) -> CallFailed:
    status = int(error.status_code)
    said = redact(_said(error), secrets)
    message = f"HTTP {status}: {said}" if said else f"HTTP {status}"
    wait = retry_after(getattr(error.response, "headers", {}))
    if status in (401, 403):
        return CallFailed("auth", message)
    if status == 404:
        return CallFailed("not_found", message)
    if status == 402 or "insufficient_quota" in message:  # a 429 of OpenAI's that no waiting mends
        return CallFailed("payment", message)
    if status == 429:
        return CallFailed("rate_limit", message, wait)
    if status in (408, 409) or status >= 500:
        return CallFailed("server", message, wait)
    return CallFailed("refused", message)


def _said(error: Any) -> str:
    """The server's own words, wherever its dialect keeps them."""
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict):
            words = [str(inner[key]) for key in ("code", "message") if inner.get(key)]
            return ": ".join(dict.fromkeys(words)) or str(inner)
        return str(inner)
    return str(body or error.response.text)


def retry_after(headers: Any) -> float | None:
    """Seconds from `retry-after-ms` or `Retry-After` (seconds or an HTTP date, RFC 9110), None without one."""
    try:
        if headers.get("retry-after-ms"):
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after")
        if not value:
            return None
        if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (TypeError, ValueError):
        return None
