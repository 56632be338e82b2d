"""The settings of a run, from its run.json, with secrets masked."""

from __future__ import annotations

import re
from typing import Any

SECRET = re.compile(r"(api_?key|token$|_token_|secret|password|passwd|credential|auth)", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"^(sk-|hf_|ghp_|xox|AKIA|ey[A-Za-z0-9_-]{20,}\.)")


def masked(name: str, value: Any) -> Any:
    """The value, or dots where the name or the value looks like a secret."""
    if isinstance(value, dict):
        return {key: masked(str(key), item) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(name, item) for item in value]
    if isinstance(value, str):
        if value and (SECRET.search(name) or _SECRET_VALUE.match(value)):
            return "••••••"
        if "=" in value and SECRET.search(value.split("=", 1)[0]):
            return value.split("=", 1)[0] + "=••••••"
    return value


def shown(manifest: dict[str, Any]) -> dict[str, Any]:
    """Setting -> value for the page: knobs, verl's overrides from the command, versions and the like."""
    knobs = manifest.get("knobs")
    shown = {str(k): masked(str(k), v) for k, v in knobs.items()} if isinstance(knobs, dict) else {}
    command = manifest.get("command")
    if isinstance(command, list):
        for word in map(str, command):
            name, equals, value = word.partition("=")
            if equals and re.fullmatch(r"\+{0,2}[A-Za-z_][\w.\-/@]*", name):
                shown[name.lstrip("+")] = masked(name, value)
    for name in ("git_sha", "device", "host"):
        if manifest.get(name):
            shown[name] = manifest[name]
    versions = manifest.get("versions")
    if isinstance(versions, dict):
        shown.update({f"version of {key}": value for key, value in versions.items()})
    return shown
