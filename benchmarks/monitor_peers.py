"""TensorBoard and trackio on the numbers that the panel is measured with."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path

import psutil
from playwright.sync_api import Browser

from benchmarks import monitor_logs
from benchmarks.monitor_panel import free_port, run_files, server
from benchmarks.peers import peer_python

TRACKIO = "trackio==0.43.0"
# With its data server in Rust, which is what makes it fast; pkg_resources left setuptools with version 81.
TENSORBOARD = ["tensorboard==2.21.0", "tensorboard-data-server==0.7.2", "setuptools<81"]


def measure_tensorboard(folder: Path, runs: int, steps: int) -> float:
    """Seconds from process start until the API has the last step of every run (it paints nothing)."""
    # One file under ten names: TensorBoard reads it ten times all the same.
    first = folder / "run0" / "events.out.tfevents.1700000000.host.1.0"
    monitor_logs.write_tfevents(first, 0, steps)
    for i in range(1, runs):
        (folder / f"run{i}").mkdir()
        os.link(first, folder / f"run{i}" / first.name)
    tool = peer_python("tensorboard-2.21.0", TENSORBOARD).with_name("tensorboard")
    port = free_port()
    address = f"http://127.0.0.1:{port}/data/plugin/scalars"
    begin = time.perf_counter()
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
    python = peer_python(TRACKIO.replace("==", "-"), [TRACKIO])
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
