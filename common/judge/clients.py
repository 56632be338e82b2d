"""The two dialects that judges speak, each through its own client; retries are ours, so the clients' are off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from common.judge.failures import CallFailed
from common.judge.settings import Settings

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    """A judge's text and what it cost in tokens.

    Attributes:
        cut: the text ended at max_tokens.
    """

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    cut: bool = False


class Client(Protocol):
    """One judge's endpoint."""

    async def ask(self, messages: Messages) -> Reply: ...

    async def models(self) -> list[str]: ...

    async def close(self) -> None: ...


def make_client(settings: Settings, key: str) -> Client:
    """The client that the settings' provider needs; `key` may be empty for servers that want none."""
    kind = AnthropicClient if settings.kind.dialect == "anthropic" else OpenAIClient
    return kind(settings, key or "none")


def _sampling(settings: Settings) -> dict[str, Any]:
    temperature = {} if settings.temperature is None else {"temperature": settings.temperature}
    return {settings.kind.max_tokens_key: settings.max_tokens, **temperature, **settings.request}


class OpenAIClient:
    """Chat completions: OpenAI, vLLM, Ollama, DeepSeek, DashScope, Gemini's compatible endpoint, ..."""

    def __init__(self, settings: Settings, key: str) -> None:
        from openai import AsyncOpenAI

        self._settings = settings
        self._client = AsyncOpenAI(
            base_url=settings.url, api_key=key, max_retries=0, timeout=settings.timeout
        )

    async def ask(self, messages: Messages) -> Reply:
        """One completion.

        Raises:
            CallFailed: the answer is none of this protocol, or was withheld.
        """
        answer: Any = await self._client.chat.completions.create(
            model=self._settings.model,
            messages=list(messages),  # type: ignore[arg-type]
            extra_body=_sampling(self._settings),
        )
        choices = getattr(answer, "choices", None)
        if not choices:
            raise CallFailed(
                "garbage", "the server's answer is no chat completion; is base_url right (does it need /v1)?"
            )
        choice, usage = choices[0], getattr(answer, "usage", None)
        text = choice.message.content or ""
        if not text and (
            choice.finish_reason == "content_filter" or getattr(choice.message, "refusal", None)
        ):
            raise CallFailed("filtered", "the provider's content filter withheld the judgement")
        return Reply(
            text,
            int(getattr(usage, "prompt_tokens", 0) or 0),
            int(getattr(usage, "completion_tokens", 0) or 0),
            choice.finish_reason == "length",
        )

    async def models(self) -> list[str]:
        """Names of the models that the server lists."""
        page: Any = await self._client.models.list()
        return [str(model.id) for model in page.data]

    async def close(self) -> None:
        await self._client.close()


class AnthropicClient:
    """Anthropic's Messages API."""

    def __init__(self, settings: Settings, key: str) -> None:
        from anthropic import AsyncAnthropic

        self._settings = settings
        self._client = AsyncAnthropic(
            base_url=settings.url, api_key=key, max_retries=0, timeout=settings.timeout
        )

    async def ask(self, messages: Messages) -> Reply:
        """One message; system turns go where this API wants them.

        Raises:
            CallFailed: the answer is none of this protocol, or was withheld.
        """
        body = _sampling(self._settings)
        answer: Any = await self._client.messages.create(
            model=self._settings.model,
            max_tokens=body.pop("max_tokens"),
            system="\n\n".join(turn["content"] for turn in messages if turn["role"] == "system"),
            messages=[turn for turn in messages if turn["role"] != "system"],  # type: ignore[misc]
            extra_body=body,
        )
        content = getattr(answer, "content", None)
        if not isinstance(content, list):
            raise CallFailed("garbage", "the server's answer is no message of Anthropic's API")
        text = "".join(block.text for block in content if getattr(block, "type", "") == "text")
        if not text and answer.stop_reason == "refusal":
            raise CallFailed("filtered", "the provider withheld the judgement")
        usage = answer.usage
        return Reply(
            text,
            int(getattr(usage, "input_tokens", 0) or 0),
            int(getattr(usage, "output_tokens", 0) or 0),
            answer.stop_reason == "max_tokens",
        )

    async def models(self) -> list[str]:
        """Names of the models that the key may use."""
        page: Any = await self._client.models.list(limit=1000)
        return [str(model.id) for model in page.data]

    async def close(self) -> None:
        await self._client.close()
