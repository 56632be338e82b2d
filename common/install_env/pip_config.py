"""pip's settings as environment variables for uv, which reads none of pip's.

People behind a mirror, a proxy or a company certificate have configured pip; what works for pip must
work here.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit


def read(python: str, environ: Mapping[str, str]) -> dict[str, str]:
    """pip's merged settings (files and PIP_* variables) by plain name, such as {"index-url": "https://..."}.

    Lowest first: [global], [install], environment; without pip only the variables are seen.
    """
    command = [python, "-m", "pip", "config", "list", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    levels: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    for line in done.stdout.splitlines():
        match = re.fullmatch(r"(global|install)\.([\w-]+)=(.*)", line)
        if match:
            level, name, value = match.groups()
            levels[level][name] = _unquoted(value)
    variables = {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in environ.items()
        if name.startswith("PIP_") and value
    }
    return {**levels["global"], **levels["install"], **variables}


def for_uv(settings: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that give uv the same settings. What the user has set for uv itself is left alone.

    Local indexes and folders that do not exist are left out: pip ignores them, uv stops.
    """
    found: dict[str, str] = {}
    if settings.get("index-url"):
        found["UV_DEFAULT_INDEX"] = settings["index-url"]
    extra = [url for url in settings.get("extra-index-url", "").split() if _reachable(url)]
    if extra:
        found["UV_INDEX"] = " ".join(extra)
        # pip takes the best match over all its indexes, uv by default only the first index that has the name.
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    links = [place for place in settings.get("find-links", "").split() if _reachable(place)]
    if links:
        found["UV_FIND_LINKS"] = ",".join(links)
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        found["UV_NO_INDEX"] = "1"
    if settings.get("cert"):
        found["SSL_CERT_FILE"] = settings["cert"]
    if settings.get("trusted-host"):
        found["UV_INSECURE_HOST"] = " ".join(settings["trusted-host"].split())
    if settings.get("proxy"):
        proxy = settings["proxy"]
        found["ALL_PROXY"] = proxy if "://" in proxy else f"http://{proxy}"
    older = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}
    return {
        name: value
        for name, value in found.items()
        if name not in environ
        and older.get(name, name) not in environ
        and not (name == "ALL_PROXY" and _has_proxy(environ))
    }


def redact(text: str) -> str:
    """The text with user names and passwords in addresses masked."""
    return re.sub(r"(\w+://)[^/\s@]+@", r"\1***@", text)


def _has_proxy(environ: Mapping[str, str]) -> bool:
    return any(
        environ.get(name) or environ.get(name.lower()) for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
    )


def _reachable(place: str) -> bool:
    parts = urlsplit(place)
    if parts.scheme == "file":
        return Path(unquote(parts.path)).exists()
    return bool(parts.scheme) or Path(place).expanduser().exists()


def _unquoted(value: str) -> str:
    try:
        return str(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return value
