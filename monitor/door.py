"""The front door: an ASGI app that answers at once, while Gradio is still being imported behind it.

Importing Gradio takes seconds. Until it is ready the door itself serves the same page, with the same server
functions; afterwards every request goes to Gradio, except the page's own files and, for pages opened early,
those functions. With a login the door serves no data at all: only Gradio, which checks it, does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import html
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

STATIC = Path(__file__).resolve().parent / "static"
MAX_BODY = 4 << 20
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
# Gradio routes that the panel does not use and that read or write files or fetch addresses.
_CLOSED = ("/upload", "/file=", "/file/", "/proxy=", "/stream/", "/dev/", "/upload_progress")


class Assets:
    """The page's own files, by name only: nothing else can be asked for."""

    def __init__(self, plotly: Path) -> None:
        files = {path.name: path for path in sorted(STATIC.iterdir()) if path.suffix in _TYPES}
        files["plotly.min.js"] = plotly
        self._files = files
        self._packed: dict[str, bytes] = {}
        marks = [f"{name}:{path.stat().st_mtime_ns}:{path.stat().st_size}" for name, path in files.items()]
        self.version = hashlib.sha256("|".join(marks).encode()).hexdigest()[:12]

    def modules(self) -> list[str]:
        """The scripts that panel.js imports."""
        return [
            name for name in self._files if name.endswith(".js") and name not in ("panel.js", "plotly.min.js")
        ]

    def get(self, name: str, packed: bool) -> tuple[bytes, str] | None:
        """Content (gzip when ``packed``) and media type; None for a name that is not ours."""
        path = self._files.get(name)
        if path is None:
            return None
        kind = _TYPES[path.suffix]
        if not packed:
            return path.read_bytes(), kind
        if name not in self._packed:
            self._packed[name] = gzip.compress(path.read_bytes(), 5)
        return self._packed[name], kind


def head_tags(prefix: str, assets: Assets) -> str:
    """The tags that load the page's files; ``prefix`` is the root path behind a proxy.

    The version stands in the path, so that the scripts' imports of each other carry it: browsers keep the files.
    """
    base = f"{prefix}/panel/{assets.version}"
    return (
        f'<link rel="preload" as="style" href="{base}/panel.css">'
        f'<script type="module" src="{base}/panel.js"></script>'
        # async: deferred scripts run in order, and the panel's first calls need not wait for Plotly.
        f'<script async src="{base}/plotly.min.js"></script>'
        + "".join(f'<link rel="modulepreload" href="{base}/{name}">' for name in assets.modules())
    )


class Door:
    """See the module's text. ``allowed_hosts``: names a browser may use, None for any."""

    def __init__(
        self,
        functions: dict[str, Callable[[Any], dict[str, Any]]],
        assets: Assets,
        *,
        login: bool,
        lang: str,
        root_path: str = "",
        allowed_hosts: set[str] | None = None,
    ) -> None:
        self.functions = functions
        self.assets = assets
        self.login = login
        self.lang = lang
        self.root_path = root_path.rstrip("/")
        self.allowed_hosts = allowed_hosts
        self.inner: AsgiApp | None = None
        self.failure = ""
        self.called_at = 0.0  # time.monotonic() of the last call of a function
        self._exit: Any = None

    def wait_until_quiet(self, seconds: float = 1.0, longest: float = 5.0) -> None:
        """Wait (in a thread) until no page has called for a while: the first chart of a page goes first."""
        end = time.monotonic() + longest
        while (now := time.monotonic()) < end and now - self.called_at < seconds:
            time.sleep(seconds - (now - self.called_at))

    async def open(self, app: Any) -> None:
        """Run the start of ``app``'s lifespan and let requests through to it."""
        context = app.router.lifespan_context(app)
        await context.__aenter__()
        self._exit = context
        self.inner = app

    async def close(self) -> None:
        if self._exit is not None:
            with contextlib.suppress(Exception):  # the process ends anyway
                await self._exit.__aexit__(None, None, None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            if self.inner is not None:
                await self.inner(scope, receive, send)
            return
        path = scope["path"]
        if self.root_path and path.startswith(self.root_path + "/"):
            path = path[len(self.root_path) :]
            scope = {**scope, "path": path, "raw_path": path.encode()}
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        if self.allowed_hosts is not None and _host(headers.get("host", "")) not in self.allowed_hosts:
            await _reply(send, 403, b"this address is not one of the panel's (see --allow-host)\n")
            return
        if path.startswith("/panel/api/"):
            await self._call(path[len("/panel/api/") :], scope, headers, receive, send)
        elif path.startswith("/panel/"):
            await self._asset(path[len("/panel/") :], headers, send)
        elif any(part in path for part in _CLOSED):
            await _reply(send, 403, b"the panel serves no files\n")
        elif self.inner is not None:
            await self.inner(scope, receive, send)
        elif path in ("", "/"):
            await self._early(send)
        elif path == "/favicon.ico":
            await _reply(send, 204, b"")
        else:
            await _reply(send, 503, b"the panel is starting\n", extra=[(b"retry-after", b"2")])

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _early(self, send: Send) -> None:
        if self.failure or self.login:
            text = html.escape(self.failure) or "The panel is starting ..."
            refresh = "" if self.failure else '<meta http-equiv="refresh" content="1">'
            page = f"<!doctype html><meta charset=utf-8>{refresh}<title>verl_training</title><p>{text}</p>"
        else:
            page = (
                f'<!doctype html><html lang="{self.lang}"><head><meta charset="utf-8">'
                "<title>verl_training monitor</title>"
                '<meta name="viewport" content="width=device-width, initial-scale=1">'
                f"{head_tags(self.root_path, self.assets)}</head><body>"
                f'<div id="vt-panel" data-base="{html.escape(self.root_path)}" data-lang="{self.lang}"></div>'
                "</body></html>"
            )
        await _reply(send, 200, page.encode(), b"text/html; charset=utf-8")

    async def _asset(self, name: str, headers: dict[str, str], send: Send) -> None:
        packed = (
            "gzip" in headers.get("accept-encoding", "") and _host(headers.get("host", "")) not in _LOOPBACK
        )
        version, _, plain = name.rpartition("/")
        known = version in ("", self.assets.version)
        found = await asyncio.to_thread(self.assets.get, plain, packed) if known else None
        if found is None:
            await _reply(send, 404, b"no such file\n")
            return
        keep = b"public, max-age=31536000, immutable" if version else b"no-cache"
        extra = [(b"cache-control", keep)]
        if packed:
            extra.append((b"content-encoding", b"gzip"))
        await _reply(send, 200, found[0], found[1].encode(), extra)

    async def _call(
        self, name: str, scope: Scope, headers: dict[str, str], receive: Receive, send: Send
    ) -> None:
        function = self.functions.get(name)
        origin = headers.get("origin")
        if self.login or function is None or scope["method"] != "POST":
            await _reply(send, 404, b"no such function\n")
            return
        if origin and origin != "null" and urlsplit(origin).netloc != headers.get("host", ""):
            await _reply(send, 403, b"called from another site\n")
            return
        if not headers.get("content-type", "").startswith("application/json"):
            await _reply(send, 415, b"send application/json\n")
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > MAX_BODY:
                await _reply(send, 413, b"request too large\n")
                return
            if not message.get("more_body"):
                break
        try:
            request = orjson.loads(body)
        except orjson.JSONDecodeError:
            await _reply(send, 400, b"not JSON\n")
            return
        self.called_at = time.monotonic()
        reply = await asyncio.to_thread(function, request)
        await _reply(send, 200, orjson.dumps(reply), b"application/json")


_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def _host(header: str) -> str:
    if header.startswith("["):
        return header[1:].split("]", 1)[0]
    return header.rsplit(":", 1)[0] if ":" in header else header


async def _reply(
    send: Send,
    status: int,
    body: bytes,
    kind: bytes = b"text/plain; charset=utf-8",
    extra: list[tuple[bytes, bytes]] | None = None,
) -> None:
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        *(extra or [(b"cache-control", b"no-store")]),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
