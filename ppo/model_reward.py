"""The reward of REWARD_SOURCE=model: a classifier's score or a chat model's grade of every answer.

    REWARD_FUNC_PATH=ppo/model_reward.py  REWARD_FUNC_NAME=compute_score
    REWARD_KWARGS='{"config": "/abs/reward_model_config.yaml", "model": "/abs/model", "served": true}'

``served``: verl runs the model on vLLM or SGLang and passes the address of its router (``POST /classify``,
``/v1/embeddings``, ``/v1/chat/completions``, as verl/experimental/reward_loop/reward_loop.py does). Otherwise
transformers runs it on the CPU, in the process that calls this function.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.judge.failures import CallFailed
from common.judge.parsing import parse_score
from common.judge.templates import Template, load_template, question_text, reference_text
from common.reward_functions.errors import RewardError
from ppo.reward_model import Settings, kind_of, load_settings

ATTEMPTS = 3
_ONE_AT_A_TIME = threading.Lock()


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    config: str,
    model: str,
    served: bool = False,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
) -> dict[str, Any]:
    """Score one answer; the question comes from ``extra_info["raw_prompt"]`` (common/judge/verl_manager.py).

    Args:
        config: the settings file, ``reward_model_config.yaml``.
        model: the reward model's folder or hub id.
        served: verl serves it.
        reward_router_address, reward_model_tokenizer: from verl where it does.

    Returns:
        ``score`` and ``raw`` (the logit that counts, or the grade on the judge's scale; 0.0 where it could not be
        read) and ``unreadable`` (1.0 then).

    Raises:
        RewardError: no question, a pair longer than max_length, a grade that cannot be read under
            ``on_failure: raise``, or a server that does not answer.
    """
    settings, kind = _ready(config, model)
    turns = (extra_info or {}).get("raw_prompt")
    if not turns:
        raise RewardError("a reward model needs the question, but extra_info has no 'raw_prompt'")
    if served and not reward_router_address:
        raise RewardError(
            "verl passed no address of the reward model's server: reward.reward_model.enable is off"
        )
    if kind == "discriminative":
        chat = [*(dict(turn) for turn in turns), {"role": "assistant", "content": solution_str}]
        logits = await (
            _server_logits(settings, chat, model, str(reward_router_address), reward_model_tokenizer)
            if served
            else asyncio.to_thread(_local_logits, settings, chat, model)
        )
        if not 1 <= len(logits) <= 2:
            raise RewardError(f"{model} answered with {len(logits)} labels; a reward needs one or two")
        return {"score": settings.reward(logits), "raw": logits[-1], "unreadable": 0.0}
    messages = _template(config, model).messages(
        question_text(turns), solution_str, reference_text(ground_truth)
    )
    reply = await (
        _server_reply(settings, messages, model, str(reward_router_address))
        if served
        else asyncio.to_thread(_local_reply, settings, messages, model)
    )
    return graded(settings, reply)


def graded(settings: Settings, reply: str) -> dict[str, Any]:
    """The reward of a written grade.

    Raises:
        RewardError: no grade in the reply under ``on_failure: raise``.
    """
    judge = settings.judge
    try:
        grade = parse_score(reply, *judge.score_range, judge.score_pattern)
    except CallFailed as failure:
        if judge.on_failure == "raise":
            raise RewardError(f"{failure} (judge.on_failure: raise)") from None
        return {"score": judge.failure_score, "raw": 0.0, "unreadable": 1.0}
    return {"score": judge.reward(grade), "raw": grade, "unreadable": 0.0}


@lru_cache(maxsize=4)
def _ready(config: str, model: str) -> tuple[Settings, str]:
    settings = load_settings(Path(config))
    return settings, kind_of(settings, model)


@lru_cache(maxsize=4)
def _template(config: str, model: str) -> Template:
    return load_template(_ready(config, model)[0].judge)


def _text(tokenizer: Any, chat: list[dict[str, Any]]) -> str:
    """The conversation as the reward model reads it; its tokenizer adds the first token itself."""
    text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False))
    return text.removeprefix(tokenizer.bos_token) if tokenizer.bos_token else text


async def _server_logits(
    settings: Settings, chat: list[dict[str, Any]], model: str, address: str, tokenizer: Any
) -> list[float]:
    payload = {"model": model, "input": _text(tokenizer, chat)}
    if settings.server.engine == "sglang":
        answer = await _post(address, "v1/embeddings", payload)
        return [float(value) for value in answer["data"][-1]["embedding"]]
    answer = await _post(address, "classify", {**payload, "use_activation": False})
    return [float(value) for value in answer["data"][-1]["probs"]]


async def _server_reply(settings: Settings, messages: list[dict[str, str]], model: str, address: str) -> str:
    judge = settings.judge
    payload = {"model": model, "messages": messages, "max_tokens": judge.max_tokens}
    if judge.temperature is not None:
        payload["temperature"] = judge.temperature
    answer = await _post(address, "v1/chat/completions", payload)
    return str(answer["choices"][0]["message"]["content"] or "")


async def _post(address: str, endpoint: str, payload: dict[str, Any]) -> dict[str, Any]:
    """One request to verl's router; lost connections and server errors are tried again."""
    import aiohttp

    url, problem = f"http://{address}/{endpoint}", ""
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(2.0**attempt)
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session,
                session.post(url, json=payload) as response,
            ):
                if response.status == 200:
                    return dict(await response.json())
                problem = f"HTTP {response.status}: {' '.join((await response.text()).split())[:300]}"
                if response.status < 500:
                    break
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            problem = f"{type(error).__name__}: {error}"
    raise RewardError(f"the reward model's server at {url} failed: {problem}")


@lru_cache(maxsize=1)
def _local(model: str, kind: str) -> tuple[Any, Any]:
    """(model, tokenizer) on the CPU in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    auto: Any = AutoModelForSequenceClassification if kind == "discriminative" else AutoModelForCausalLM
    loaded, report = auto.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
    if report["missing_keys"]:
        raise RewardError(
            f"{model} lacks weights ({', '.join(sorted(report['missing_keys'])[:3])}): no trained head?"
        )
    if kind == "discriminative":
        # One conversation at a time: its last token decides, whatever token that is.
        loaded.config.pad_token_id = None
    return loaded.eval(), AutoTokenizer.from_pretrained(model)


def _checked_length(tokens: Any, settings: Settings) -> None:
    length = tokens["input_ids"].shape[1]
    if length > settings.max_length:
        raise RewardError(
            f"question and answer have {length} tokens, more than max_length: {settings.max_length}"
        )


def _local_logits(settings: Settings, chat: list[dict[str, Any]], model: str) -> list[float]:
    import torch

    with _ONE_AT_A_TIME, torch.inference_mode():
        scorer, tokenizer = _local(model, "discriminative")
        tokens = tokenizer(_text(tokenizer, chat), return_tensors="pt")
        _checked_length(tokens, settings)
        return [float(value) for value in scorer(**tokens).logits[0]]


def _local_reply(settings: Settings, messages: list[dict[str, str]], model: str) -> str:
    import torch

    judge = settings.judge
    with _ONE_AT_A_TIME, torch.inference_mode():
        writer, tokenizer = _local(model, "generative")
        tokens = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        _checked_length(tokens, settings)
        sampling = (
            {"do_sample": True, "temperature": judge.temperature}
            if judge.temperature
            else {"do_sample": False}
        )
        written = writer.generate(**tokens, max_new_tokens=judge.max_tokens, **sampling)
        return str(tokenizer.decode(written[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))
