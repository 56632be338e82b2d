"""Read watch.yaml: every key is known, of the right kind and used, or refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.launcher.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("watch.yaml")
EVENTS = ("stall", "stopped", "effect", "failed", "finished")
SEVERITIES = ("bad", "warn", "info")
# What STOP_ON may name beside the rules.
STALL = "stall"


@dataclass(frozen=True)
class StallLimits:
    """See watch.yaml; seconds but for `factor`."""

    factor: float
    least: float
    long: float
    start: float


@dataclass(frozen=True)
class Settings:
    """The file's contents."""

    poll: float
    heartbeat: float
    progress_terminal: float
    progress_log: float
    stall: StallLimits
    rules: Path
    rules_every: float
    severities: tuple[str, ...]
    events: tuple[str, ...]
    timeout: float


_SHAPE = {
    "": {"poll", "heartbeat", "progress", "stall", "rules", "rules_every", "webhook"},
    "progress": {"terminal", "log"},
    "stall": {"factor", "least", "long", "start"},
    "webhook": {"severities", "events", "timeout"},
}


def load(path: Path = FILE) -> Settings:
    """Read the settings.

    Raises:
        UserError: unreadable, or a key is unknown, missing or of the wrong kind.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    for name, known in _SHAPE.items():
        part = raw if not name else raw.get(name)
        if not isinstance(part, dict):
            raise UserError(f"{path}: {name or 'the file'} must be a mapping")
        if wrong := sorted(map(str, set(part) ^ known)):
            state = "unknown" if wrong[0] not in known else "missing"
            raise UserError(f"{path}: key {f'{name}.' if name else ''}{wrong[0]} is {state}")

    def seconds(group: dict[str, Any], key: str) -> float:
        value = group[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise UserError(f"{path}: {key} must be a number above 0, not {value!r}")
        return float(value)

    def names(key: str, known: tuple[str, ...]) -> tuple[str, ...]:
        values = raw["webhook"][key]
        if not isinstance(values, list) or not set(values) <= set(known):
            raise UserError(f"{path}: webhook.{key} must be a list of {', '.join(known)}")
        return tuple(values)

    stall = raw["stall"]
    return Settings(
        seconds(raw, "poll"),
        seconds(raw, "heartbeat"),
        seconds(raw["progress"], "terminal"),
        seconds(raw["progress"], "log"),
        StallLimits(*(seconds(stall, key) for key in ("factor", "least", "long", "start"))),
        ROOT / str(raw["rules"]),
        seconds(raw, "rules_every"),
        names("severities", SEVERITIES),
        names("events", EVENTS),
        seconds(raw["webhook"], "timeout"),
    )


def stop_rules(text: str) -> list[str]:
    """The ids in a STOP_ON list.

    Raises:
        UserError: one is no rule.
    """
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    if not wanted:
        return []
    from monitor.settings import load as load_panel

    known = [rule.id for rule in load_panel(load().rules).rules] + [STALL]
    for name in wanted:
        if name not in known:
            raise UserError(f"STOP_ON names '{name}', which is no rule; there are: {', '.join(known)}")
    return wanted
