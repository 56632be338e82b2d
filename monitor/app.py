"""The training panel.

    cd monitor && python app.py --port 7860 --log_dir ../outputs/logs
    python monitor/app.py --check ../outputs/logs    # no page: a report; exit code 1 when something is wrong

See monitor/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run as a script: `monitor` is imported from the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from monitor import door, settings
from monitor.api import LANGUAGES, PanelApi
from monitor.check import report
from monitor.metrics_collector import Collector

if TYPE_CHECKING:
    import gradio

REPOSITORY = Path(__file__).resolve().parents[1]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
AUTH_VARIABLE = "MONITOR_AUTH"
_PAGE_CSS = (
    "footer { display: none !important } .gradio-container .vt-host, .gradio-container .vt-host > div"
    " { padding: 0 !important; border: 0 !important; overflow: visible !important }"
)
_MOUNT = """
const start = () => window.vtPanel ? window.vtPanel.mount(element.querySelector('.vt-root'), server, '%s')
                                   : setTimeout(start, 20);
start();
"""


class UsageError(Exception):
    """A wrong option; the text is all the user sees."""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(
        prog="app.py", description="Watch verl runs: curves, samples, GPUs, and what looks wrong."
    )
    parser.add_argument(
        "--log_dir", "--log-dir", type=Path, default=REPOSITORY / "outputs" / "logs",
        help="folder with runs (ours or any verl output), or one log file (default: outputs/logs)",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--auth", metavar="USER:PASS", help=f"ask for a login (or set {AUTH_VARIABLE})")
    parser.add_argument("--no-auth", action="store_true", help="listen beyond this machine without a login")
    parser.add_argument(
        "--root-path", default="", metavar="/PATH", help="path under which a proxy serves the panel"
    )
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                        help="a further name that browsers may use, for a proxy without a login")  # fmt: skip
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="language of the page (default en)")
    parser.add_argument(
        "--config", type=Path, default=Path(__file__).with_name("config.yaml"), help="settings file"
    )
    parser.add_argument(
        "--check", type=Path, metavar="DIR", help="report on DIR and exit: 0 well, 1 not, 2 no runs"
    )
    return parser.parse_args(argv)


def login(args: argparse.Namespace) -> tuple[str, str] | None:
    """The login to ask for.

    Raises:
        UsageError: malformed, or missing where the panel would be open to other machines.
    """
    text = args.auth or os.environ.get(AUTH_VARIABLE) or ""
    if text:
        user, colon, password = text.partition(":")
        if not (user and colon and password):
            raise UsageError(f"--auth and {AUTH_VARIABLE} take USER:PASS, both not empty")
        if args.no_auth:
            raise UsageError("--auth and --no-auth exclude each other")
        return user, password
    if args.host not in LOOPBACK and not args.no_auth:
        raise UsageError(
            f"--host {args.host} lets other machines read prompts and answers: add --auth USER:PASS, set "
            f"{AUTH_VARIABLE}, or say --no-auth"
        )
    return None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UsageError: the port is taken (names a free one) or the address is not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (socket.gaierror, OverflowError) as error:
        raise UsageError(f"--host {host} --port {port}: {error}") from error
    server = socket.socket(family, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((host, port))
    except OverflowError as error:
        server.close()
        raise UsageError(f"--port {port}: must be 0 to 65535") from error
    except OSError as error:
        server.close()
        if error.errno in (98, 48, 10048):
            free = _free_port(host, family, port)
            raise UsageError(f"port {port} is in use; port {free} is free: --port {free}") from error
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    server.listen(128)
    return server


def _free_port(host: str, family: int, above: int) -> int:
    for port in [*range(above + 1, min(above + 50, 65536)), 0]:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
                return int(probe.getsockname()[1])
            except OSError:
                continue
    return 0


def plotly_file() -> Path:
    """plotly.min.js of the installed plotly package, without importing it.

    Raises:
        UsageError: plotly is not installed.
    """
    spec = importlib.util.find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("the package plotly is missing: pip install -r requirements.txt")
    path = Path(next(iter(spec.submodule_search_locations))) / "package_data" / "plotly.min.js"
    if not path.is_file():
        raise UsageError(f"{path} is missing: reinstall plotly")
    return path


def build_ui(api: PanelApi) -> gradio.Blocks:
    """The page: one gr.HTML whose server functions are the panel's."""
    import gradio as gr

    with gr.Blocks(title="verl_training monitor", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(
            html_template='<div class="vt-root"></div>',
            js_on_load=_MOUNT % api.lang,
            server_functions=list(api.functions().values()),
            apply_default_css=False,
            padding=False,
            elem_classes="vt-host",
        )
    return blocks


def gradio_app(
    api: PanelApi, assets: door.Assets, auth: tuple[str, str] | None, root_path: str
) -> tuple[Any, gradio.Blocks]:
    """Import Gradio (seconds), make its ASGI app and the page in it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import fastapi
        import gradio as gr

        blocks = build_ui(api)
        app = gr.mount_gradio_app(
            fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            blocks,
            path="/",
            auth=auth,
            auth_message="verl_training monitor" if auth else None,
            root_path=root_path or None,
            head=door.head_tags(root_path, assets),
            css=_PAGE_CSS,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            show_error=False,
        )
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()
    return app, blocks


def launch(args: argparse.Namespace) -> int:
    """Serve the page until interrupted."""
    gc.disable()  # until Gradio is imported: parsing and importing free almost nothing that needs collecting
    auth = login(args)
    config = settings.load(args.config)
    root_path = "/" + args.root_path.strip("/") if args.root_path.strip("/") else ""
    sock = listen(args.host, args.port)
    port = sock.getsockname()[1]
    collector = Collector(args.log_dir, config.refresh_seconds, config.rescan_seconds, config.index_cache)
    collector.start()
    import uvicorn  # after the ingest thread has begun: it can read while this is imported

    api = PanelApi(collector, config, args.lang)
    assets = door.Assets(plotly_file())
    names = None if auth or args.no_auth else {*LOOPBACK, args.host, *args.allow_host}
    front = door.Door(
        api.functions(),
        assets,
        login=auth is not None,
        lang=args.lang,
        root_path=root_path,
        allowed_hosts=names,
    )
    _say_where(args, port, root_path, collector.root)

    async def serve() -> None:
        loop = asyncio.get_running_loop()

        def behind() -> None:
            # The door already shows the runs, so they come first; with a login only Gradio can show them.
            if auth:
                collector.first_ready.wait(timeout=15.0)
            else:
                collector.complete.wait(timeout=15.0)
                front.wait_until_quiet()
            try:
                app, blocks = gradio_app(api, assets, auth, root_path)
                asyncio.run_coroutine_threadsafe(front.open(app), loop).result()
            except Exception as error:  # shown in the page and the terminal: the door cannot open without it
                front.failure = f"Gradio could not start: {type(error).__name__}: {error}"
                print(f"monitor: {front.failure}", file=sys.stderr)
                return
            # The page has no queued events, and an idle queue wakes a thousand times a second.
            loop.call_soon_threadsafe(blocks._queue.close)

        threading.Thread(target=behind, daemon=True, name="gradio-import").start()
        server = uvicorn.Server(
            uvicorn.Config(
                front, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=2
            )
        )
        await server.serve(sockets=[sock])

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asyncio.run(serve())
    except KeyboardInterrupt:
        pass
    finally:
        collector.stop()
    return 0


def _say_where(args: argparse.Namespace, port: int, root_path: str, root: Path) -> None:
    shown = args.host if args.host not in ("0.0.0.0", "::") else socket.gethostname()
    print(f"Panel:   http://{shown}:{port}{root_path}/")
    if args.host in LOOPBACK:
        user = os.environ.get("USER") or "USER"
        tunnel = f"ssh -N -L {port}:127.0.0.1:{port} {user}@{socket.gethostname()}"
        print(f"Remote:  {tunnel}   (run this on your own computer)")
    print(f"Logs:    {root}")
    if not root.exists():
        print("         this folder does not exist yet; runs appear here as soon as it does")
    print("Stop:    Ctrl+C", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parse_arguments(argv)
    try:
        if args.check is not None:
            return report(args.check, settings.load(args.config), args.lang, time.time())
        return launch(args)
    except (UsageError, settings.SettingsError) as error:
        print(f"monitor: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
