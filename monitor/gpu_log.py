"""Read a run's ``gpu.jsonl`` (one sample of all GPUs, CPU and RAM per line) as it grows."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from monitor.json_log import JsonLog
from monitor.log_parser import Float32, Int64
from monitor.series import Float64

GIB = 1 << 30


class GpuLog(JsonLog):
    """Samples of one run. Columns are named ``gpu/<index>/util`` (of host X: ``gpu/X:<index>/util``)."""

    def _clear(self) -> None:
        self._times: list[float] = []
        self._steps: list[int] = []
        self._columns: dict[str, list[float]] = {}
        self.latest: dict[str, dict[str, Any]] = {}
        self._by_step: tuple[int, tuple[Int64, dict[str, Float32]]] | None = None

    def _take(self, line: bytes) -> None:
        row = orjson.loads(line)
        moment = float(row["time"])
        host = str(row.get("host") or "")
        step = row.get("step")
        named = host if self.latest and (host not in self.latest or len(self.latest) > 1) else ""
        values = _values(row, row.get("gpus") or [], named)
        self.latest[host] = row
        count = len(self._times)
        self._times.append(moment)
        self._steps.append(step if isinstance(step, int) else (self._steps[-1] if self._steps else -1))
        for name, value in values.items():
            column = self._columns.setdefault(name, [float("nan")] * count)
            column += [float("nan")] * (count - len(column))
            column.append(value)

    def table(self) -> tuple[Float64, Int64, dict[str, Float32]]:
        """Times (epoch seconds), steps (-1 before the first) and columns, all of shape [samples]."""
        count = len(self._times)
        columns = {}
        for name, values in self._columns.items():
            column = np.full(count, np.nan, dtype=np.float32)
            column[: len(values)] = values
            columns[name] = column
        return np.array(self._times), np.array(self._steps, dtype=np.int64), columns

    def by_step(self) -> tuple[Int64, dict[str, Float32]]:
        """Means per training step: [steps] and columns of the same length."""
        if self._by_step is not None and self._by_step[0] == self.revision:
            return self._by_step[1]
        _, steps, columns = self.table()
        order = np.argsort(steps, kind="stable")
        order = order[steps[order] >= 0]
        unique, begins = np.unique(steps[order], return_index=True)
        means: dict[str, Float32] = {}
        if len(unique):
            for name, values in columns.items():
                finite = np.isfinite(values[order])
                total = np.add.reduceat(np.where(finite, values[order], 0.0), begins)
                count = np.add.reduceat(finite.astype(np.float64), begins)
                with np.errstate(invalid="ignore", divide="ignore"):
                    means[name] = (total / count).astype(np.float32)
        self._by_step = (self.revision, (unique, means))
        return unique, means

    def step_times(self) -> tuple[Int64, Float64]:
        """For each step the time it was first seen."""
        times, steps, _ = self.table()
        known = steps >= 0
        unique, first = np.unique(steps[known], return_index=True)
        return unique, np.maximum.accumulate(times[known][first]) if len(unique) else np.empty(0)


def _float(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")


def _values(row: dict[str, Any], gpus: list[dict[str, Any]], host: str) -> dict[str, float]:
    values: dict[str, float] = {}
    prefix = f"{host}:" if host else ""
    for gpu in gpus:
        name = f"gpu/{prefix}{gpu['index']}"
        values[f"{name}/util_percent"] = _float(gpu.get("util"))
        values[f"{name}/memory_gb"] = _float(gpu.get("mem_used")) / GIB
        values[f"{name}/power_w"] = _float(gpu.get("power"))
        values[f"{name}/temperature_c"] = _float(gpu.get("temp"))
    if gpus:
        used = [_float(gpu.get("util")) for gpu in gpus]
        finite = [value for value in used if np.isfinite(value)]
        values["gpu/util_percent"] = sum(finite) / len(finite) if finite else float("nan")
        values["gpu/memory_gb"] = float(np.nansum([_float(gpu.get("mem_used")) for gpu in gpus])) / GIB
    values[f"host/{prefix}cpu_percent"] = _float(row.get("cpu"))
    values[f"host/{prefix}ram_gb"] = _float(row.get("ram_used")) / GIB
    return values
