"""Starting, watching and asking a panel (or another server), for the monitor's benchmarks and browser tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]


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


def run_files(logs: Path) -> list[Path]:
    return sorted(logs.glob("run*/metrics-1.jsonl"))
