"""Read monitor/config.yaml: every key is known, typed and used, or refused by name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from monitor.health import Rule, RuleError, load_rules


class SettingsError(ValueError):
    """The config file cannot be used; the text says which key and why."""


@dataclass(frozen=True)
class PlainName:
    """A plain metric name: the verl keys it may stand for, in order, and its meaning per language."""

    keys: tuple[str, ...]
    meaning: dict[str, str]


@dataclass(frozen=True)
class Group:
    id: str
    title: dict[str, str]
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class Settings:
    """The whole config. Times in seconds."""

    refresh_seconds: float
    rescan_seconds: float
    health_seconds: float
    stall_factor: float
    stall_seconds: float
    selected_at_start: int
    index_cache: Path | None
    page_groups: int
    text_limit: int
    charts: list[str]
    names: dict[str, PlainName]
    groups: list[Group]
    validation: list[tuple[re.Pattern[str], str]]
    rules: list[Rule]


_KEYS = {
    "refresh_seconds", "rescan_seconds", "health_seconds", "stall", "selected_at_start", "index_cache",
    "page_groups", "text_limit", "charts", "names", "groups", "validation", "rules",
}  # fmt: skip


def default_cache() -> Path:
    """The user's cache folder for parsed logs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "verl_training" / "monitor"


def load(path: Path) -> Settings:
    """Read the config file.

    Raises:
        SettingsError: unreadable, not YAML, or a key is unknown, missing or of the wrong kind.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise SettingsError(f"{path}: must be a mapping of settings")
    if unknown := sorted(set(raw) - _KEYS):
        raise SettingsError(f"{path}: unknown key {unknown[0]!r}; known: {', '.join(sorted(_KEYS))}")
    if missing := sorted(_KEYS - set(raw)):
        raise SettingsError(f"{path}: key {missing[0]!r} is missing")
    try:
        return _settings(raw)
    except RuleError as error:
        raise SettingsError(f"{path}: {error}") from error
    except KeyError as error:
        raise SettingsError(f"{path}: key {error} is missing in an entry") from error
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise SettingsError(f"{path}: {error}") from error


def _positive(raw: dict[str, Any], name: str) -> float:
    value = raw[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise ValueError(f"{name} must be a number above 0, not {value!r}")
    return float(value)


def _cache(value: Any) -> Path | None:
    if value in (False, None, "off"):  # YAML reads a bare off as false
        return None
    return default_cache() if value == "auto" else Path(str(value)).expanduser()


def _settings(raw: dict[str, Any]) -> Settings:
    return Settings(
        refresh_seconds=_positive(raw, "refresh_seconds"),
        rescan_seconds=_positive(raw, "rescan_seconds"),
        health_seconds=_positive(raw, "health_seconds"),
        stall_factor=_positive(raw["stall"], "factor"),
        stall_seconds=_positive(raw["stall"], "seconds"),
        selected_at_start=int(_positive(raw, "selected_at_start")),
        index_cache=_cache(raw["index_cache"]),
        page_groups=int(_positive(raw, "page_groups")),
        text_limit=int(_positive(raw, "text_limit")),
        charts=[str(name) for name in raw["charts"]],
        names={
            str(name): PlainName(
                tuple(map(str, entry["keys"])), {k: v for k, v in entry.items() if k != "keys"}
            )
            for name, entry in raw["names"].items()
        },
        groups=[
            Group(str(g["id"]), {"en": str(g["en"]), "zh": str(g.get("zh", g["en"]))}, re.compile(g["match"]))
            for g in raw["groups"]
        ],
        validation=[(re.compile(entry["match"]), _best(entry["best"])) for entry in raw["validation"]],
        rules=load_rules(raw["rules"]),
    )


def _best(value: Any) -> str:
    if value not in ("max", "min"):
        raise ValueError(f"validation: best must be max or min, not {value!r}")
    return str(value)
