"""A judge: from question, answer and reference to a score, through cache, limits, retries and parsing."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

from common.judge.cache import Cache, content_key, default_path
from common.judge.clients import Client, Messages, Reply, make_client
from common.judge.failures import CallFailed, classify
from common.judge.limits import Limits
from common.judge.metrics import Metrics
from common.judge.parsing import parse_reason, parse_score
from common.judge.settings import Settings
from common.judge.templates import load_template

# (training step, split) that counts are kept by.
Tag = tuple[int | None, str]
NO_TAG: Tag = (None, "")
# A reply without a score is answered by a reminder of the form so many times.
REMINDERS = 2
_CHARACTERS_PER_TOKEN = 3.0  # a careful estimate; corrected by what the server reports


@dataclass(frozen=True)
class Verdict:
    """One judgement.

    Attributes:
        score: on the judge's own scale (`score_range`).
        reward: mapped to `reward_range`.
        reason: the judge's sentence where it gave one.
        reply: its whole text.
        cached: it came from the cache, or from an equal call that was under way.
    """

    score: float
    reward: float
    reason: str
    reply: str
    cached: bool = False


def read_reply(settings: Settings, reply: Reply) -> Verdict:
    """The judgement in a reply.

    Raises:
        CallFailed: unparsable, out_of_range, or truncated (cut off before there was a score).
    """
    try:
        score = parse_score(reply.text, *settings.score_range, settings.score_pattern)
    except CallFailed as failure:
        if reply.cut:
            raise CallFailed(
                "truncated",
                f"the judge's reply ended at max_tokens={settings.max_tokens} without a score: raise it",
                reply=reply.text,
            ) from None
        raise failure
    return Verdict(score, settings.reward(score), parse_reason(reply.text), reply.text)


class Judge:
    """Asks one judge; all methods on one event loop.

    Args:
        settings: checked settings.
        run_dir: folder of `judge-metrics.jsonl`, None for no file.

    Raises:
        JudgeError: no key in the environment, or a template that cannot be used.
    """

    def __init__(self, settings: Settings, run_dir: Path | None = None) -> None:
        self.settings = settings
        self.template = load_template(settings)
        self._key = settings.api_key()
        self._client: Client | None = None
        self.limits = Limits(
            settings.max_concurrency, settings.requests_per_minute, settings.tokens_per_minute
        )
        self.metrics = Metrics(run_dir)
        self.cache = Cache(
            {"auto": default_path(), "on": default_path(), "off": None, "": None}.get(
                settings.cache, Path(settings.cache).expanduser()
            )
        )
        self._running: dict[str, asyncio.Task[Verdict]] = {}
        self._jitter = random.Random()

    @property
    def client(self) -> Client:
        """Made at the first call, so that a judge whose replies are all cached imports no client."""
        if self._client is None:
            self._client = make_client(self.settings, self._key)
        return self._client

    async def score(self, question: str, answer: str, reference: str = "", tag: Tag = NO_TAG) -> Verdict:
        """Judge one answer.

        Raises:
            CallFailed: no judgement could be had, after all retries.
        """
        messages = self.template.messages(question, answer, reference)
        s = self.settings
        key = content_key(s.url, s.model, messages, s.temperature, s.max_tokens, s.request)
        self.metrics.add(tag, samples=1)
        verdict = self._from_cache(key)
        if verdict is None and key in self._running:  # e.g. the same answer twice in a group
            verdict = await asyncio.shield(self._running[key])
        if verdict is not None:
            self.metrics.add(tag, cache_hits=1)
            return Verdict(verdict.score, verdict.reward, verdict.reason, verdict.reply, cached=True)
        task = self._running[key] = asyncio.ensure_future(self._ask(messages, key, tag))
        task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Write what is pending and close connections."""
        self.flush()
        self.cache.close()
        if self._client is not None:
            await self._client.close()
            self._client = None

    def flush(self) -> None:
        """Write counts and new judgements to disk."""
        self.metrics.flush()
        self.cache.flush()

    def _from_cache(self, key: str) -> Verdict | None:
        stored = self.cache.get(key)
        if stored is None:
            return None
        try:
            return read_reply(self.settings, Reply(json.loads(stored)["text"]))
        except (CallFailed, ValueError, KeyError, TypeError):
            return None  # judged under another range or pattern: ask again

    async def _ask(self, messages: Messages, key: str, tag: Tag) -> Verdict:
        """Call until there is a score, the failure is final, or the retries are used up."""
        asked, reminders, attempt = list(messages), 0, 0
        while True:
            try:
                reply = await self._call(asked, tag)
                verdict = read_reply(self.settings, reply)
            except CallFailed as failure:
                formless = failure.kind in ("unparsable", "out_of_range")
                wait = 0.0 if formless else self._wait(failure, attempt)
                spent = attempt >= self.settings.max_retries or (formless and reminders >= REMINDERS)
                if not failure.retryable or spent or (failure.retry_after or 0) > self.settings.max_wait:
                    raise self._final(failure, attempt) from None
                if formless:
                    reminders += 1
                    asked = [*messages, {"role": "assistant", "content": failure.reply or "(empty)"}]
                    asked.append({"role": "user", "content": self.template.repair()})
                attempt += 1
                self.metrics.add(tag, retries=1)
                if failure.retry_after:
                    self.limits.pause(failure.retry_after)
                await asyncio.sleep(wait)
                continue
            self.cache.put(key, json.dumps({"text": reply.text}))
            return verdict

    async def _call(self, messages: Messages, tag: Tag) -> Reply:
        """One request, within the limits.

        Raises:
            CallFailed: of any kind.
        """
        client = self.client  # made before a place in line is taken: its import takes a second
        estimate = sum(len(turn["content"]) for turn in messages) / _CHARACTERS_PER_TOKEN
        estimate += self.settings.max_tokens
        async with self.limits.turn(estimate) as waited:
            self.metrics.add(tag, calls=1, waited=waited)
            begin = time.perf_counter()
            try:
                # The client's own timeout counts the time between bytes; this one the whole call.
                reply = await asyncio.wait_for(client.ask(messages), self.settings.timeout)
            except Exception as error:
                failure = error if isinstance(error, CallFailed) else classify(error, (self._key,))
                if failure is None:
                    raise
                if failure.kind != "timeout":  # the server may still be writing that one
                    self.limits.used(estimate, 0)
                # Nothing of the client's exception goes on: it holds the request with its headers.
                raise failure from None
            finally:
                self.metrics.add(tag, seconds=time.perf_counter() - begin)
        self.limits.used(estimate, reply.tokens_in + reply.tokens_out)
        self.metrics.add(
            tag,
            tokens_in=reply.tokens_in,
            tokens_out=reply.tokens_out,
            cost=self.settings.cost(reply.tokens_in, reply.tokens_out),
        )
        return reply

    def _wait(self, failure: CallFailed, attempt: int) -> float:
        """Seconds before the next attempt: what the server said, else exponential backoff with jitter."""
        if failure.retry_after is not None:
            return failure.retry_after + self._jitter.uniform(0.0, self.settings.backoff)
        # The power is bounded: a float overflows long before a patient user's retries end.
        delay = self.settings.backoff * 2 ** min(attempt, 30)
        return min(self.settings.max_wait, delay) * self._jitter.uniform(0.5, 1.0)

    def _final(self, failure: CallFailed, attempt: int) -> CallFailed:
        tries = f" ({attempt + 1} attempts)" if attempt else ""
        asked = ""
        if failure.retry_after is not None and failure.retry_after > self.settings.max_wait:
            asked = f"; it asks to wait {failure.retry_after:.0f} s, more than max_wait={self.settings.max_wait:g}"
        message = f"{failure.kind}: {failure}{asked}{tries}"
        return CallFailed(failure.kind, message, failure.retry_after, failure.reply)
