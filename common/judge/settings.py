"""The judge's configuration: one YAML file, every key checked, no key of an API in it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common.judge.failures import JudgeError
from common.judge.providers import PROVIDERS, Provider
from common.reward_functions.registry import nearest

POLICIES = ("raise", "drop", "constant")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Settings:
    """One judge; the keys of the YAML file, see ppo/api_reward_config.yaml for what each means."""

    provider: str = "openai"
    model: str = ""
    base_url: str = ""
    api_key_env: str = ""
    preset: str = "quality"
    template: str = ""
    system: str = ""
    temperature: float | None = 0.0
    max_tokens: int = 512
    request: dict[str, Any] = field(default_factory=dict)
    score_range: tuple[float, float] = (0.0, 10.0)
    reward_range: tuple[float, float] | None = (0.0, 1.0)
    score_pattern: str = ""
    max_concurrency: int = 16
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    timeout: float = 60.0
    max_retries: int = 5
    backoff: float = 1.0
    max_wait: float = 60.0
    cache: str = "auto"
    on_failure: str = "raise"
    failure_score: float = 0.0
    max_failure_share: float = 0.5
    drop_wait: float = 600.0
    price: dict[str, float] = field(default_factory=dict)

    @property
    def kind(self) -> Provider:
        return PROVIDERS[self.provider]

    @property
    def url(self) -> str:
        return self.base_url or self.kind.base_url

    @property
    def key_env(self) -> str:
        return self.api_key_env or self.kind.key_env

    def reward(self, score: float) -> float:
        """The judge's score mapped from `score_range` to `reward_range`."""
        if self.reward_range is None:
            return score
        low, high = self.score_range
        bottom, top = self.reward_range
        return bottom + (score - low) / (high - low) * (top - bottom)

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """What that many tokens cost, in the currency of `price` (per million tokens)."""
        return (
            tokens_in * self.price.get("input", 0.0) + tokens_out * self.price.get("output", 0.0)
        ) / 1_000_000

    def api_key(self) -> str:
        """The key, from the environment.

        Raises:
            JudgeError: the variable is not set.
        """
        if not self.key_env:
            return ""
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise JudgeError(
                f"the judge's API key is missing: export {self.key_env}=... "
                f"(provider {self.provider}; another variable's name goes into api_key_env)"
            )
        return key


def load_settings(path: Path | str, changes: Mapping[str, Any] | None = None) -> Settings:
    """Settings from a YAML file, `changes` over it; a relative `template` is looked for beside the file.

    Raises:
        JudgeError: no such file, no YAML, an unknown key, or a value of the wrong form.
    """
    import yaml

    path = Path(path).expanduser()
    if not path.is_file():
        raise JudgeError(f"judge configuration {path} does not exist")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JudgeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(given, Mapping):
        raise JudgeError(f"{path} must hold one mapping of keys, e.g. 'model: gpt-4o-mini'")
    settings = make_settings({**given, **(changes or {})}, str(path))
    if settings.template and not Path(settings.template).expanduser().is_absolute():
        settings = dataclasses.replace(settings, template=str(path.parent / settings.template))
    return settings


def make_settings(given: Mapping[str, Any], where: str = "judge settings") -> Settings:
    """Checked settings from plain values; null means the default, except where null has a meaning."""
    fields = {f.name: f for f in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in fields:
            raise JudgeError(
                f"{where} has an unknown key '{name}'{nearest(str(name), list(fields))}; "
                f"the keys: {', '.join(fields)}"
            )
        if value is None and name not in ("temperature", "reward_range"):
            continue
        values[name] = _value(where, name, str(fields[name].type), value)
    settings = Settings(**values)
    _check(where, settings)
    return settings


def _value(where: str, name: str, kind: str, value: Any) -> Any:
    if kind.startswith("tuple"):
        if value is None:
            return None
        pair = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
        if len(pair) != 2 or not all(_is_number(item) for item in pair) or pair[0] >= pair[1]:
            raise JudgeError(f"{where}: {name} must be [low, high] with low < high, not {value!r}")
        return float(pair[0]), float(pair[1])
    if kind.startswith("dict"):
        if not isinstance(value, Mapping):
            raise JudgeError(f"{where}: {name} must be a mapping, not {value!r}")
        return dict(value)
    if kind == "str":
        if not isinstance(value, str):
            value = {True: "on", False: "off"}.get(value, value) if name == "cache" else value
        if not isinstance(value, str):
            raise JudgeError(f"{where}: {name} must be text, not {value!r}")
        return value
    if value is None:
        return None
    if not _is_number(value) or (kind == "int" and value != int(value)):
        raise JudgeError(
            f"{where}: {name} must be a {'whole ' if kind == 'int' else ''}number, not {value!r}"
        )
    return int(value) if kind == "int" else float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # no NaN


def _check(where: str, s: Settings) -> None:
    if s.provider not in PROVIDERS:
        raise JudgeError(
            f"{where}: provider '{s.provider}' is unknown{nearest(s.provider, list(PROVIDERS))}; "
            f"the providers: {', '.join(PROVIDERS)} (any other OpenAI-compatible server: custom, with base_url)"
        )
    if not s.model:
        raise JudgeError(f"{where}: model is missing: the judge's name at {s.provider}")
    if not s.url:
        raise JudgeError(f"{where}: provider custom needs base_url, e.g. http://host:8000/v1")
    address = urlsplit(s.url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise JudgeError(f"{where}: base_url={s.url} must begin with http:// or https:// and name a host")
    if address.username or address.password:
        raise JudgeError(f"{where}: base_url must hold no user or password; keys come from the environment")
    if s.api_key_env and not _NAME.fullmatch(s.api_key_env):
        raise JudgeError(
            f"{where}: api_key_env is the NAME of an environment variable, not the key itself "
            "(a key in a file gets copied and committed): write e.g. api_key_env: OPENAI_API_KEY"
        )
    if s.on_failure not in POLICIES:
        raise JudgeError(
            f"{where}: on_failure='{s.on_failure}' must be one of {', '.join(POLICIES)}"
            f"{nearest(s.on_failure, POLICIES)}"
        )
    for name in ("max_tokens", "max_concurrency"):
        if getattr(s, name) < 1:
            raise JudgeError(f"{where}: {name}={getattr(s, name)} must be 1 or more")
    for name in ("requests_per_minute", "tokens_per_minute", "max_retries", "backoff", "max_wait"):
        if getattr(s, name) < 0:
            raise JudgeError(f"{where}: {name}={getattr(s, name)} must be 0 or more")
    for name in ("timeout", "drop_wait"):
        if getattr(s, name) <= 0:
            raise JudgeError(f"{where}: {name}={getattr(s, name)} must be more than 0 seconds")
    if not 0 < s.max_failure_share <= 1:
        raise JudgeError(f"{where}: max_failure_share={s.max_failure_share} must be over 0 and at most 1")
    for name, value in s.price.items():
        if name not in ("input", "output") or not _is_number(value) or value < 0:
            raise JudgeError(
                f"{where}: price must be {{input: X, output: Y}} per million tokens, not {s.price!r}"
            )
    if s.score_pattern:
        try:
            groups = re.compile(s.score_pattern).groups
        except re.error as error:
            raise JudgeError(f"{where}: score_pattern is no regular expression: {error}") from None
        if groups != 1:
            raise JudgeError(f"{where}: score_pattern needs exactly one group around the number")
    for name in ("model", "messages", "temperature", "max_tokens", "stream", "n", s.kind.max_tokens_key):
        if name in s.request:
            raise JudgeError(f"{where}: request.{name} is set by the judge itself; use the key of that name")
