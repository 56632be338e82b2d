"""verl's command as a list of words: read an override, replace overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping


def key_of(word: str) -> str:
    """The Hydra key that an override is about: ``+a.b=1`` -> ``a.b``."""
    return word.partition("=")[0].lstrip("+~")


def quote(value: str) -> str:
    """*value* as a Hydra string in double quotes, as ``launch::quote`` of common/launch.sh writes it."""
    escaped = re.sub(r'(\\*)(?="|\Z)', r"\1\1", value).replace('"', '\\"')
    return '"' + escaped.replace("${", "\\${") + '"'


def value_of(command: list[str], key: str, default: str = "") -> str:
    """The raw text that *command* gives to *key*; the last one counts, as in Hydra."""
    found = [word.partition("=")[2] for word in command if key_of(word) == key and "=" in word]
    return found[-1] if found else default


def replaced(command: list[str], overrides: Mapping[str, str]) -> list[str]:
    """*command* with *overrides* (key, ``+`` in front where it is new -> raw value) instead of its own."""
    keys = {key_of(key) for key in overrides}
    start = command.index("--config-name") + 2
    kept = [word for word in command[start:] if key_of(word) not in keys]
    return [*command[:start], *kept, *(f"{key}={value}" for key, value in overrides.items())]
