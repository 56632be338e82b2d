"""What training talks to: ports, Ray clusters, the Hugging Face cache, Weights & Biases."""

from __future__ import annotations

import netrc
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from common.check_env.finding import ERROR, OK, WARNING, Finding
from common.system import existing

_PORTS = {
    6379: "Ray head (ray start --head)",
    8265: "Ray dashboard",
    7860: "monitor (Gradio)",
    29500: "torchrun (SFT, DPO)",
}
_TRUE = ("1", "true", "yes", "on")


def ports() -> Iterator[Finding]:
    """Ports that a launch will want, and which are taken."""
    taken = [port for port in _PORTS if not port_free(port)]
    for port in taken:
        fix = f"ss -ltnp 'sport = :{port}' shows the program; stop it or choose another port"
        yield Finding("services", f"port {port}", WARNING, f"taken; used for {_PORTS[port]}", fix)
    if len(taken) < len(_PORTS):
        free = ", ".join(str(port) for port in _PORTS if port not in taken)
        yield Finding("services", "ports", OK, f"{free} free")


def ray(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Is there a Ray cluster that ray.init() would join without a word?"""
    address = environ.get("RAY_ADDRESS", "")
    if address and address != "local":
        fix = "unset RAY_ADDRESS for a run on this machine alone"
        yield Finding("services", "ray cluster", WARNING, f"RAY_ADDRESS={address}: Ray will join it", fix)
        return
    file = Path(environ.get("RAY_TMPDIR", "/tmp/ray")) / "ray_current_cluster"
    try:
        address = file.read_text(encoding="utf-8").strip()
    except OSError:
        yield Finding("services", "ray cluster", OK, "none running")
        return
    host, _, port = address.rpartition(":")
    if port.isdigit() and _answers(host or "127.0.0.1", int(port)):
        detail = f"one runs at {address}: Ray will join it"
        yield Finding("services", "ray cluster", WARNING, detail, "ray stop, unless it is meant")
    else:
        yield Finding("services", "ray cluster", OK, f"none running ({file} is left over)")


def hugging_face(environ: Mapping[str, str]) -> Iterator[Finding]:
    """The cache of models and data sets: place, size, whether it can be written, how downloads go."""
    home = Path(environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    place = existing(cache)
    if not os.access(place, os.W_OK):
        yield Finding(
            "services", "hf cache", ERROR, f"{cache} cannot be written", "set HF_HOME to a folder of yours"
        )
    else:
        yield Finding("services", "hf cache", OK, f"{cache}, {_size(cache)}")
    offline = next(
        (n for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if environ.get(n, "").lower() in _TRUE), ""
    )
    endpoint = environ.get("HF_ENDPOINT", "")
    if offline:
        fix = f"unset {offline} to download models and data"
        yield Finding("services", "hf downloads", WARNING, f"{offline} is set: local files only", fix)
    else:
        detail = (
            f"from {_host(endpoint)} (HF_ENDPOINT)"
            if endpoint
            else "from huggingface.co (HF_ENDPOINT: a mirror)"
        )
        yield Finding("services", "hf downloads", OK, detail)


def wandb(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether a run could report to Weights & Biases. The key itself is never read out."""
    mode = environ.get("WANDB_MODE", "")
    host = _host(environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if mode in ("offline", "disabled", "dryrun"):
        yield Finding("services", "wandb", OK, f"WANDB_MODE={mode}")
    elif environ.get("WANDB_API_KEY"):
        yield Finding("services", "wandb", OK, "logged in (WANDB_API_KEY)")
    elif _in_netrc(host, environ):
        yield Finding("services", "wandb", OK, f"logged in at {host} (netrc)")
    else:
        fix = "wandb login, or WANDB_MODE=offline; without either wandb stays off"
        yield Finding("services", "wandb", WARNING, "not logged in", fix)


def port_free(port: int) -> bool:
    """True when this machine can listen on *port*."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _host(url: str) -> str:
    """The host of an address: what else is in it may be a password."""
    return urlsplit(url if "://" in url else f"//{url}").hostname or "?"


def _in_netrc(host: str, environ: Mapping[str, str]) -> bool:
    candidates = [environ.get("NETRC", ""), "~/.netrc", "~/_netrc"]
    for name in filter(None, candidates):
        try:
            if netrc.netrc(Path(name).expanduser()).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _size(folder: Path, seconds: float = 1.5) -> str:
    """The size of a folder's files, or a lower bound when counting takes longer than `seconds`."""
    end = time.monotonic() + seconds
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size  # noqa: PTH118 - a Path per file is slow here
            except OSError:
                continue
        if time.monotonic() > end:
            return f"more than {total / 1e9:.1f} GB"
    return f"{total / 1e9:.1f} GB"
