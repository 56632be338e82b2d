"""The panel under load: 10 runs x 100,000 steps x 20 metrics (verl's own log format, 0.8 GB) in headless
Chromium, with TensorBoard and trackio on the same numbers in the same run.

    python benchmarks/monitor_load.py                      # everything, about 5 minutes
    python benchmarks/monitor_load.py --no-peers           # the panel alone
    python benchmarks/monitor_load.py --heap-minutes 30    # browser memory over time (CI: as many refreshes as in 5)

Needs Debian's chromium and playwright; TensorBoard and trackio get environments of their own (benchmarks/peers.py).
Prints one row per target and exits 1 when one is missed.
"""
# ruff: noqa: E402  (the repository is not installed)

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, Response, sync_playwright

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks import monitor_logs
from benchmarks.monitor_browser import CHROMIUM, FLAGS
from benchmarks.monitor_heap import heap_growth
from benchmarks.monitor_panel import (
    cpu_ms,
    free_port,
    memory_mb,
    panel_command,
    percentile,
    post,
    run_files,
    server,
    wait_for_gradio,
    wait_for_port,
    write_config,
)  # fmt: skip
from benchmarks.monitor_peers import measure_tensorboard, measure_trackio

REFRESHES = 15


class Targets:
    """Collects one line per target."""

    def __init__(self) -> None:
        self.missed = 0

    def row(self, what: str, value: float, unit: str, limit: float | None = None, note: str = "") -> None:
        verdict = "" if limit is None else ("ok" if value <= limit else "MISSED")
        self.missed += verdict == "MISSED"
        bound = "" if limit is None else f"<= {limit:g}"
        print(f"{what:<58} {value:>10.3f} {unit:<6} {bound:<10} {verdict:<7} {note}", flush=True)


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
        begin, grown = heap_growth(
            tab, logs, steps, int(minutes * 30), lambda step: tab.wait_for_timeout(2000)
        )
        targets.row(f"heap growth over {minutes:g} min (from {begin:.0f} MB)", grown, "MB", 50.0)
        tab.close()


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
