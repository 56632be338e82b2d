"""Sample GPUs, CPU and RAM of this host into a JSONL file until the training process ends.

    python -m common.gpu_sampler --out RUN/gpu.jsonl --interval 2 --parent PID

Each line: ``{"time": epoch seconds, "host", "step": N or null, "gpus": [{"index", "name", "util" (%),
"mem_used", "mem_total" (bytes), "power" (W), "temp" (C)}], "cpu" (%), "ram_used", "ram_total" (bytes)}``.
The step is the newest one in the newest ``metrics-*.jsonl`` beside the output file. Without an NVIDIA driver
``gpus`` is empty; a reading that a board does not offer (utilisation under MIG, power on some) is null.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

_STEP = re.compile(rb'^\{"step":(\d+)')


class GpuReader:
    """NVML readings, each guarded on its own. ``reason`` says in words why there are none."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        self.reason = ""
        try:
            import pynvml  # nvidia-ml-py; imported here because a machine without a GPU may lack it
        except ImportError:
            self.reason = "the package nvidia-ml-py is not installed"
            return
        try:
            pynvml.nvmlInit()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            self.reason = f"no NVIDIA driver on this host ({error})"
            return
        self._nvml = pynvml
        if not self._handles:
            self.reason = "the NVIDIA driver reports no GPU"

    def read(self) -> list[dict[str, Any]]:
        """One dict per GPU of this host, whatever CUDA_VISIBLE_DEVICES says; [] without GPUs."""
        if self._nvml is None:
            return []
        return [self._one(index, handle) for index, handle in enumerate(self._handles)]

    def _one(self, index: int, handle: Any) -> dict[str, Any]:
        nvml = self._nvml

        def ask(call: Callable[[], Any]) -> Any:
            try:
                return call()
            except nvml.NVMLError:
                return None

        memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        rates = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        power = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        name = ask(lambda: nvml.nvmlDeviceGetName(handle))
        return {
            "index": index,
            "name": name.decode() if isinstance(name, bytes) else name,
            "util": None if rates is None else rates.gpu,
            "mem_used": None if memory is None else memory.used,
            "mem_total": None if memory is None else memory.total,
            "power": None if power is None else power / 1000.0,
            "temp": ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        }


def host_sample(reader: GpuReader, step: int | None = None) -> dict[str, Any]:
    """One line of ``gpu.jsonl``. CPU percent is since the previous call (0.0 at the first)."""
    memory = psutil.virtual_memory()
    return {
        "time": round(time.time(), 3),
        "host": socket.gethostname(),
        "step": step,
        "gpus": reader.read(),
        "cpu": psutil.cpu_percent(None),
        "ram_used": memory.total - memory.available,
        "ram_total": memory.total,
    }


def newest_step(folder: Path) -> int | None:
    """The last complete record's step of the newest ``metrics-*.jsonl`` in ``folder``, if any."""
    try:
        logs = sorted(folder.glob("metrics-*.jsonl"), key=lambda path: path.stat().st_mtime)
        return last_step(logs[-1]) if logs else None
    except OSError:
        return None


def last_step(metrics: Path) -> int | None:
    """The last complete record's step of one ``metrics-*.jsonl``; None without one."""
    try:
        with metrics.open("rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(0, handle.tell() - (1 << 16)))
            for line in reversed(handle.read().split(b"\n")[:-1]):
                if match := _STEP.match(line):
                    return int(match.group(1))
    except OSError:
        return None
    return None


def sample_until_gone(out: Path, interval: float, parent: psutil.Process | None) -> None:
    """Append a sample every ``interval`` seconds until ``parent`` has ended (None: until killed)."""
    reader = GpuReader()
    psutil.cpu_percent(None)
    with out.open("a", encoding="utf-8", buffering=1) as log:
        while parent is None or (parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE):
            began = time.monotonic()
            log.write(json.dumps(host_sample(reader, newest_step(out.parent))) + "\n")
            time.sleep(max(0.05, interval - (time.monotonic() - began)))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Append GPU, CPU and RAM readings of this host to a JSONL file."
    )
    parser.add_argument("--out", type=Path, required=True, help="file to append to")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between samples (default 2)")
    parser.add_argument("--parent", type=int, help="stop when this process id is gone")
    args = parser.parse_args(argv)
    if args.interval <= 0:
        parser.error(f"--interval must be above 0 seconds, not {args.interval}")
    try:
        parent = None if args.parent is None else psutil.Process(args.parent)
    except psutil.NoSuchProcess:
        print(f"gpu_sampler: no process with id {args.parent} (--parent)", file=sys.stderr)
        return 1
    try:
        sample_until_gone(args.out, args.interval, parent)
    except psutil.NoSuchProcess:
        return 0  # the training process ended between two looks
    except OSError as error:
        print(f"gpu_sampler: cannot write {args.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
