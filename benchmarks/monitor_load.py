"""The panel under load: 10 runs x 100,000 steps x 20 metrics (verl's own log format, 0.8 GB) in headless
Chromium, with TensorBoard and trackio on the same numbers in the same run.

    python benchmarks/monitor_load.py                      # everything, about 5 minutes
    python benchmarks/monitor_load.py --no-peers           # the panel alone
    python benchmarks/monitor_load.py --heap-minutes 30    # browser memory over time (5 in CI)

Needs Debian's chromium, playwright, tensorboard; makes a virtual environment of its own for trackio (kept in
~/.cache/verl_training). Prints one row per target and exits 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Browser, CDPSession, Page, Response, sync_playwright

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks import monitor_logs  # noqa: E402  (the repository is not installed)
from benchmarks.monitor_browser import CHROMIUM, FLAGS  # noqa: E402

TRACKIO = "trackio==0.43.0"
REFRESHES = 15
LOADED = "document.querySelector('#vt-panel,.vt-root')?.shadowRoot?.querySelector('.vt')?.dataset.loaded"


class Targets:
    """Collects one line per target."""

    def __init__(self) -> None:
        self.missed = 0

    def row(self, what: str, value: float, unit: str, limit: float | None = None, note: str = "") -> None:
        verdict = "" if limit is None else ("ok" if value <= limit else "MISSED")
        self.missed += verdict == "MISSED"
        bound = "" if limit is None else f"<= {limit:g}"
        print(f"{what:<58} {value:>10.3f} {unit:<6} {bound:<10} {verdict:<7} {note}", flush=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(command: list[str], env: dict[str, str] | None = None) -> Iterator[psutil.Popen]:
    """A server process, ended with its children at the end."""
    process = psutil.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **(env or {})}
    )
    try:
        yield process
    finally:
        family = [process, *process.children(recursive=True)]
        for member in family:
            try:
                member.send_signal(signal.SIGTERM)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=8)
        for member in family:
            if member.is_running():
                member.kill()


def panel_command(logs: Path, port: int, config: Path) -> list[str]:
    return [
        sys.executable, str(REPOSITORY / "monitor" / "app.py"), "--log_dir", str(logs), "--port", str(port),
        "--config", str(config),
    ]  # fmt: skip


def wait_for_port(port: int, seconds: float = 60.0) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise SystemExit(f"no server on port {port} after {seconds:.0f} s")


def post(url: str, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return bytes(reply.read())


def memory_mb(process: psutil.Popen) -> float:
    members = [process, *process.children(recursive=True)]
    return sum(member.memory_info().rss for member in members) / 2**20


def cpu_ms(process: psutil.Popen) -> float:
    """CPU time of all threads so far; /proc's schedstat counts nanoseconds where cpu_times counts 10 ms."""
    total = 0
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e6


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def until_loaded(port: int, begin: float) -> float:
    """Seconds since ``begin`` until the panel's API says that every run is read."""
    wait_for_port(port)
    everything = {"session": "bench", "view": {"runs": [], "charts": [], "fresh": True}}
    while b'"loading"' in post(f"http://127.0.0.1:{port}/panel/api/poll", everything):
        time.sleep(0.05)
    return time.perf_counter() - begin


def measure_loaded(logs: Path, config: Path) -> float:
    """Seconds from start to all runs loaded when nobody looks, as TensorBoard is measured."""
    port = free_port()
    begin = time.perf_counter()
    with server(panel_command(logs, port, config)):
        return until_loaded(port, begin)


def measure_start(browser: Browser, logs: Path, config: Path) -> tuple[float, float, float]:
    """Seconds from start to the first chart of the newest run and to all runs loaded; memory (MB) then."""
    port = free_port()
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    loaded: list[float] = []
    begin = time.perf_counter()
    with server(panel_command(logs, port, config)) as process:
        watcher = threading.Thread(target=lambda: loaded.append(until_loaded(port, begin)))
        watcher.start()
        wait_for_port(port)
        tab.goto(f"http://127.0.0.1:{port}/", wait_until="commit")
        tab.wait_for_selector("[data-painted]", timeout=60_000)
        first = time.perf_counter() - begin
        watcher.join()
        tab.wait_for_timeout(6000)  # Gradio is in by then: its memory belongs to the panel's
        used = memory_mb(process)
    tab.close()
    return first, loaded[0], used


def run_files(logs: Path) -> list[Path]:
    return sorted(logs.glob("run*/metrics-1.jsonl"))


def measure_refresh(browser: Browser, logs: Path, config: Path, steps: int, targets: Targets) -> None:
    """Live growth: one new line per run and refresh."""
    port = free_port()
    runs = "~".join(f"run{i}" for i in range(len(run_files(logs))))
    twelve = "~".join(key.replace("/", "%2F") for key in monitor_logs.KEYS[:12])
    with server(panel_command(logs, port, config)) as process:
        wait_for_port(port)
        address = f"http://127.0.0.1:{port}/"
        wait_for_gradio(address)
        time.sleep(6)
        before = cpu_ms(process)
        time.sleep(10)
        idle = (cpu_ms(process) - before) / 5
        targets.row("server CPU per 2 s without any page", idle, "ms")
        for name, query, tall, limits in (
            ("one chart x 10 runs", f"?runs={runs}&charts=reward_mean", 900, (150.0, 300.0)),
            ("12 charts x 10 runs", f"?runs={runs}&charts={twelve}", 2600, (500.0, None)),
        ):
            tab = browser.new_page(viewport={"width": 1440, "height": tall})
            sizes: list[int] = []
            unchanged: list[int] = []

            def seen(reply: Response, sizes: list[int] = sizes, unchanged: list[int] = unchanged) -> None:
                if "component_server" in reply.url:
                    body = reply.body()
                    (unchanged if b'"unchanged"' in body else sizes).append(len(body))

            tab.goto(address + query)
            tab.wait_for_selector("[data-painted]", timeout=60_000)
            tab.wait_for_timeout(4000)
            if name.startswith("12"):
                drawn = tab.evaluate(
                    "[...window.vtPanel.app.charts.cards.values()].filter(c => c.drawn && c.visible).length"
                )
                if drawn != 12:
                    raise SystemExit(f"only {drawn} charts on the page: nothing to measure")
            full = tab.evaluate(
                "async () => { const a = window.vtPanel.app; a.fresh = true;"
                " while (a.busy) await new Promise(r => setTimeout(r, 5)); const b = performance.now();"
                " await a.poll(); return performance.now() - b }"
            )
            tab.on("response", seen)
            tab.evaluate("window.vtPanel.app.stats.ms.length = 0")
            before = cpu_ms(process)
            for _ in range(REFRESHES):
                for path in run_files(logs):
                    steps += 1
                    monitor_logs.append_line(path, steps)
                tab.wait_for_timeout(2000)
            cpu = (cpu_ms(process) - before) / REFRESHES - idle
            times = tab.evaluate("window.vtPanel.app.stats.ms")
            work = [ms for ms in times if ms > 0]
            targets.row(f"refresh end to end, {name}, p95", percentile(work, 0.95), "ms", limits[0])
            targets.row(f"all lines anew, {name}", full, "ms")
            targets.row(f"largest refresh, {name}", max(sizes, default=0) / 1024, "KB", limits[1])
            bound = 10.0 if name.startswith("one") else None
            targets.row(f"server CPU per refresh over idle, {name}", cpu, "ms", bound)
            if not name.startswith("12"):
                tab.wait_for_timeout(5000)
                targets.row("unchanged poll", max(unchanged, default=0) / 1024, "KB", 1.0)
            tab.close()


def wait_for_gradio(address: str) -> None:
    end = time.perf_counter() + 180
    while time.perf_counter() < end:
        try:
            with urllib.request.urlopen(address + "config", timeout=10) as reply:
                if reply.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("Gradio did not start within 180 s")


def measure_samples(browser: Browser, folder: Path, config: Path, targets: Targets) -> None:
    """A step of 320 prompts x 8 answers, some 14 MB: from the click to the painted page."""
    logs = folder / "sample_logs"
    text = "Let me think step by step. " * 190
    for step in (1, 2):
        rows = [
            {"input": f"prompt {p}", "output": f"{text}{p}-{i}.", "gts": "7", "score": float(i == p % 8),
             "step": step, "uid": f"p{p}_0_{i}"}
            for p in range(320) for i in range(8)
        ]  # fmt: skip
        path = logs / "run" / "rollouts" / f"{step}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monitor_logs.write_jsonl(logs / "run" / "metrics-1.jsonl", 0, 10)
    (logs / "run" / "run.json").write_text("{}", encoding="utf-8")
    port = free_port()
    pane = "window.vtPanel.app.panes.samples.dataset"
    with server(panel_command(logs, port, config)):
        wait_for_port(port)
        wait_for_gradio(f"http://127.0.0.1:{port}/")
        tab = browser.new_page(viewport={"width": 1440, "height": 900})
        tab.goto(f"http://127.0.0.1:{port}/?tab=samples")
        tab.wait_for_function(f"window.vtPanel?.app?.panes && {pane}.matched === '2560'", timeout=60_000)
        tab.wait_for_timeout(3000)
        opened = _timed(tab, "s.go({ step: 1 })")  # a step that was not opened before
        targets.row("2,560 samples: open a step", opened, "ms", 300.0)
        filters = [
            "s.fields.text.value = '7-7.'",
            "s.fields.text.value = '\\\\d+7-\\\\d'; s.fields.regex.checked = true",
            "s.fields.text.value = ''; s.fields.low.value = 0.5",
            "s.fields.outcome.value = 'mixed'",
        ]
        times = [_timed(tab, f"{change}; s.readFilter(); s.load()") for change in filters]
        targets.row("2,560 samples: slowest of text, regex, score, outcome filter", max(times), "ms", 100.0)
        tab.close()


def _timed(tab: Page, action: str) -> float:
    """Milliseconds that the Samples tab took for one request, painting included."""
    tab.evaluate(f"() => {{ const s = window.vtPanel.app.tabs.samples; delete s.root.dataset.ms; {action} }}")
    tab.wait_for_function("window.vtPanel.app.tabs.samples.root.dataset.ms !== undefined", timeout=30_000)
    return float(tab.evaluate("window.vtPanel.app.tabs.samples.root.dataset.ms"))


def heap_mb(session: CDPSession) -> float:
    session.send("HeapProfiler.collectGarbage")
    return float(session.send("Runtime.getHeapUsage")["usedSize"]) / 2**20


def measure_heap(
    browser: Browser, logs: Path, config: Path, steps: int, minutes: float, targets: Targets
) -> None:
    """Browser memory while ten runs grow every two seconds."""
    port = free_port()
    runs = "~".join(f"run{i}" for i in range(len(run_files(logs))))
    with server(panel_command(logs, port, config)):
        wait_for_port(port)
        wait_for_gradio(f"http://127.0.0.1:{port}/")
        tab = browser.new_page(viewport={"width": 1440, "height": 900})
        tab.goto(f"http://127.0.0.1:{port}/?runs={runs}")
        tab.wait_for_selector("[data-painted]", timeout=60_000)
        session = tab.context.new_cdp_session(tab)
        _grow(tab, logs, steps, 20)
        begin = heap_mb(session)
        _grow(tab, logs, steps + 1_000_000, int(minutes * 30))
        targets.row(
            f"heap growth over {minutes:g} min (from {begin:.0f} MB)", heap_mb(session) - begin, "MB", 50.0
        )
        tab.close()


def _grow(tab: Page, logs: Path, step: int, refreshes: int) -> None:
    for _ in range(refreshes):
        step += 1
        for path in run_files(logs):
            monitor_logs.append_line(path, step)
        tab.wait_for_timeout(2000)


def measure_tensorboard(folder: Path, runs: int, steps: int) -> float:
    """Seconds from process start until the API has the last step of every run (it paints nothing)."""
    # One file under ten names: TensorBoard reads it ten times all the same.
    first = folder / "run0" / "events.out.tfevents.1700000000.host.1.0"
    monitor_logs.write_tfevents(first, 0, steps)
    for i in range(1, runs):
        (folder / f"run{i}").mkdir()
        os.link(first, folder / f"run{i}" / first.name)
    port = free_port()
    address = f"http://127.0.0.1:{port}/data/plugin/scalars"
    begin = time.perf_counter()
    tool = Path(sys.executable).with_name("tensorboard")
    with server([str(tool), "--logdir", str(folder), "--port", str(port), "--host", "127.0.0.1"]):
        waiting = {f"run{i}" for i in range(runs)}
        while waiting:
            for name in sorted(waiting):
                try:
                    with urllib.request.urlopen(
                        f"{address}/scalars?run={name}&tag=critic%2Fscore%2Fmean", timeout=5
                    ) as r:
                        points = json.loads(r.read())
                    if points and points[-1][1] >= steps:
                        waiting.discard(name)
                except (OSError, ValueError):
                    break
            if time.perf_counter() - begin > 180:
                raise SystemExit("TensorBoard did not load within 180 s")
            time.sleep(0.05)
        return time.perf_counter() - begin


def trackio_python() -> Path:
    """The Python of trackio's own virtual environment, made on first use."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "verl_training"
    folder = home / ("bench-" + TRACKIO.replace("==", "-"))
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", TRACKIO], check=True)
        (folder / "ready").touch()
    return python


_FILL = """
import sys, orjson
from pathlib import Path
from trackio.sqlite_storage import SQLiteStorage
for log in map(Path, sys.argv[1:]):
    rows = [orjson.loads(line) for line in log.read_bytes().splitlines()]
    data, steps = [r["data"] for r in rows], [r["step"] for r in rows]
    SQLiteStorage.bulk_log("bench", log.parent.name, data, steps=steps)
"""


def measure_trackio(browser: Browser, logs: Path, folder: Path) -> float:
    """Seconds from process start to its first painted plot."""
    python = trackio_python()
    env = {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "BROWSER": "true"}
    subprocess.run(
        [str(python), "-c", _FILL, *map(str, run_files(logs))], check=True, env={**os.environ, **env}
    )
    port = free_port()
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    begin = time.perf_counter()
    env |= {"GRADIO_SERVER_PORT": str(port), "TRACKIO_SERVER_PORT": str(port)}
    with server([str(python.with_name("trackio")), "show", "--project", "bench"], env) as process:
        found = 0
        while not found and time.perf_counter() - begin < 60:
            members = [process, *process.children(recursive=True)]
            ports = [
                c.laddr.port
                for m in members
                for c in m.net_connections("tcp")
                if c.status == psutil.CONN_LISTEN
            ]
            found = ports[0] if ports else 0
            time.sleep(0.02)
        if not found:
            raise SystemExit("trackio opened no port within 60 s")
        tab.goto(f"http://127.0.0.1:{found}/?project=bench", wait_until="commit")
        tab.wait_for_selector(".vega-embed canvas, .vega-embed svg, canvas.marks, svg.marks", timeout=170_000)
        took = time.perf_counter() - begin
    tab.close()
    return took


def write_config(folder: Path) -> Path:
    """The shipped settings with an index cache of our own."""
    text = (REPOSITORY / "monitor" / "config.yaml").read_text(encoding="utf-8")
    lines = [
        f"index_cache: {folder / 'cache'}" if line.startswith("index_cache:") else line
        for line in text.splitlines()
    ]
    path = folder / "config.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The panel under load, with TensorBoard and trackio beside it."
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--no-peers", action="store_true", help="without TensorBoard and trackio")
    parser.add_argument("--starts-only", action="store_true", help="without refreshes and samples")
    parser.add_argument(
        "--heap-minutes", type=float, default=0.0, help="measure only the browser's memory, so long"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    targets = Targets()
    folder = Path(tempfile.mkdtemp(prefix="monitor_load."))
    try:
        logs = folder / "logs"
        size = sum(
            monitor_logs.write_jsonl(logs / f"run{i}" / "metrics-1.jsonl", i, args.steps)
            for i in range(args.runs)
        )
        print(
            f"{args.runs} runs x {args.steps} steps x {len(monitor_logs.KEYS)} metrics = {size / 1e6:.0f} MB"
        )
        config = write_config(folder)
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            if args.heap_minutes:
                measure_heap(browser, logs, config, args.steps, args.heap_minutes, targets)
            else:
                load_figures(browser, folder, logs, config, args, targets)
            browser.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if targets.missed else 0


def load_figures(
    browser: Browser, folder: Path, logs: Path, config: Path, args: argparse.Namespace, targets: Targets
) -> None:
    browser.new_page().close()  # the browser itself is warm; what is measured is the panel
    cold = measure_start(browser, logs, config)
    targets.row("first chart of the newest run, cold", cold[0], "s", 4.0)
    targets.row("all runs loaded, cold", cold[1], "s", 8.0)
    targets.row("panel memory", cold[2], "MB", 500.0)
    warm = measure_start(browser, logs, config)
    targets.row("first chart of the newest run, from the index cache", warm[0], "s")
    targets.row("all runs loaded, from the index cache", warm[1], "s", 2.5)
    if not args.starts_only:
        measure_refresh(browser, logs, config, args.steps, targets)
        measure_samples(browser, folder, config, targets)
    if not args.no_peers:
        shutil.rmtree(folder / "cache")
        board = measure_tensorboard(folder / "tensorboard", args.runs, args.steps)
        ours = measure_loaded(logs, config)
        targets.row("all runs loaded, cold, no page open", ours, "s")
        targets.row("TensorBoard: all runs loaded (likewise from its API)", board, "s")
        targets.row("panel / TensorBoard, all runs loaded", ours / board, "ratio", 1.0)
        shutil.rmtree(folder / "tensorboard")
        other = measure_trackio(browser, logs, folder / "trackio")
        targets.row("trackio: first plot", other, "s")
        targets.row("panel / trackio, first plot", cold[0] / other, "ratio", 1.0)


if __name__ == "__main__":
    raise SystemExit(main())
