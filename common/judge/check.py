"""Everything about a judge that can be known before a run, with one real call; each problem in one line."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from common.judge.clients import Client, Reply, make_client
from common.judge.failures import CallFailed, JudgeError, classify
from common.judge.judge import read_reply
from common.judge.settings import Settings, load_settings
from common.judge.templates import load_template

QUESTION = "What is 7 + 24? Reply with only the number."
ANSWER, REFERENCE = "31", "31"
# A check must not hang on a host that swallows packets.
LONGEST_CALL = 60.0


@dataclass(frozen=True)
class Checked:
    """A judge that works."""

    settings: Settings
    score: float
    seconds: float
    reply: Reply

    def __str__(self) -> str:
        s = self.settings
        low, high = s.score_range
        return (
            f"judge ok: {s.model} at {s.url} answered in {self.seconds:.1f} s with score {self.score:g} of {low:g} to "
            f"{high:g} ({self.reply.tokens_in} + {self.reply.tokens_out} tokens)"
        )


def check_config(path: Path | str, changes: dict[str, Any] | None = None) -> Checked:
    """Read the configuration and judge one sample, without cache and without retries.

    Raises:
        JudgeError: what is wrong, in one line: file, key of the API, preset, template, URL, model name, or a reply
            without a score.
    """
    return asyncio.run(check_judge(load_settings(path, changes)))


async def check_judge(settings: Settings) -> Checked:
    """The same for settings that were read already."""
    template = load_template(settings)
    key = settings.api_key()
    limited = replace(settings, timeout=min(settings.timeout, LONGEST_CALL))
    client = make_client(limited, key)
    begin = time.perf_counter()
    try:
        try:
            reply = await asyncio.wait_for(
                client.ask(template.messages(QUESTION, ANSWER, REFERENCE)), limited.timeout
            )
            seconds = time.perf_counter() - begin
            verdict = read_reply(settings, reply)
        except Exception as error:
            failure = error if isinstance(error, CallFailed) else classify(error, (key,))
            if failure is None:
                raise
            raise JudgeError(await _explain(failure, settings, client)) from None
    finally:
        await client.close()
    return Checked(settings, verdict.score, seconds, reply)


async def _explain(failure: CallFailed, s: Settings, client: Client) -> str:
    """One line: what is wrong and what to do."""
    where = f"judge {s.model} at {s.url}"
    if failure.kind in ("not_found", "refused"):
        return await _wrong_name_or_url(failure, s, client)
    advice = {
        "auth": f"the key in {s.key_env or 'api_key_env'} is not accepted"
        if s.key_env
        else "the server wants a key: name its environment variable in api_key_env",
        "connection": "the server cannot be reached: is base_url right, is the server running, is a proxy needed?",
        "timeout": f"no answer within {min(s.timeout, LONGEST_CALL):g} s: is base_url right? Raise timeout for a "
        "slow server",
        "garbage": "no API answered at this address: is base_url right (most need /v1 at the end)?",
        "payment": "the account has no quota left: top it up, or use another model",
        "rate_limit": "the server refuses more requests now: wait, or set requests_per_minute lower",
        "server": "the server failed; try again",
        "filtered": "the provider's filter withheld even a harmless test",
        "unparsable": "it answered, but without a score: use a stronger model, raise max_tokens for a reasoning "
        "model, set request: {response_format: {type: json_object}}, or give score_pattern",
        "truncated": "its reply was cut off",
        "out_of_range": "it does not keep to score_range: use a stronger model, or correct your template",
    }[failure.kind]
    return f"{where}: {advice} ({failure})"


async def _wrong_name_or_url(failure: CallFailed, s: Settings, client: Client) -> str:
    """A 404 or 400 is a wrong model where the server lists models without ours, else a wrong address or request."""
    try:
        names = await asyncio.wait_for(client.models(), min(s.timeout, LONGEST_CALL))
    except Exception:  # this server lists none: many reasons, one meaning
        names = []
    if names and s.model not in names and f"models/{s.model}" not in names:
        close = get_close_matches(s.model, names, n=1, cutoff=0.4)
        shown = f"did you mean '{close[0]}'?" if close else f"it has: {', '.join(names[:8])}"
        return f"judge: {s.url} has no model '{s.model}'; {shown} ({failure})"
    if failure.kind == "not_found" and not names:
        return (
            f"judge: nothing answers for model '{s.model}' at {s.url}: check base_url (most need /v1 at the end) "
            f"and the model's name ({failure})"
        )
    return f"judge {s.model} at {s.url} refuses the request: check temperature, max_tokens and request ({failure})"
