"""Where the known judges live, which environment variable holds their key, and how they want to be asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Provider:
    """One kind of endpoint.

    Attributes:
        base_url: its address; "" where the user must give one.
        key_env: environment variable of its key; "" where servers of this kind want none.
        dialect: "openai" (chat completions) or "anthropic" (messages).
        max_tokens_key: the request's name for the longest answer.
    """

    base_url: str
    key_env: str
    dialect: str = "openai"
    max_tokens_key: str = "max_tokens"


PROVIDERS = {
    "openai": Provider("https://api.openai.com/v1", "OPENAI_API_KEY", max_tokens_key="max_completion_tokens"),
    "anthropic": Provider("https://api.anthropic.com", "ANTHROPIC_API_KEY", dialect="anthropic"),
    "gemini": Provider("https://generativelanguage.googleapis.com/v1beta/openai/", "GEMINI_API_KEY"),
    "dashscope": Provider("https://dashscope.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY"),
    "deepseek": Provider("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "openrouter": Provider("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "vllm": Provider("http://localhost:8000/v1", ""),
    "ollama": Provider("http://localhost:11434/v1", ""),
    "custom": Provider("", ""),
}
