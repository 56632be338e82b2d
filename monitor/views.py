"""What an open page shows, kept on the server so that a poll sends only what is new.

A page holds a session id and a sequence number. While both sides agree on the number, the server knows what
the page has; otherwise the page sends its whole view again. Series travel as base64 float32, reduced to the
chart's width with every minimum and maximum kept.
"""

from __future__ import annotations

import base64
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monitor.log_parser import Float32, Int64
from monitor.run import Run
from monitor.series import Ema, Float64, bucket_width, reduce_min_max
from monitor.stitch import Series

MAX_SESSIONS = 64
MAX_CHARTS = 200
MAX_RUNS = 50
MAX_BROKEN = 200
_FLOAT32_EXACT = 1 << 24


def packed(values: np.ndarray[Any, Any]) -> str:
    """Little-endian float32 as base64."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")


@dataclass(frozen=True)
class Chart:
    """One chart: ``metric`` is a plain name or a key, ``pixels`` its width, ``span`` the zoomed x range."""

    id: str
    metric: str
    pixels: int
    span: tuple[float, float] | None


@dataclass
class View:
    """A page's whole state, as it was last agreed on."""

    runs: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    smoothing: float = 0.0
    axis: str = "step"
    sequence: int = 0
    list_seen: int = -1
    sent: dict[tuple[str, str], Sent] = field(default_factory=dict)


@dataclass(frozen=True)
class Sent:
    """What a page has of one line: ``state`` must stay the same for an addition to be enough."""

    state: tuple[Any, ...]
    end: int
    last: float


class Sessions:
    """The views of the open pages; the least recently used go first."""

    def __init__(self) -> None:
        self._views: OrderedDict[str, tuple[View, threading.Lock]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, session: str) -> tuple[View, threading.Lock]:
        """The view of a page, new when it is not known."""
        with self._lock:
            held = self._views.pop(session, None) or (View(), threading.Lock())
            self._views[session] = held
            while len(self._views) > MAX_SESSIONS:
                self._views.popitem(last=False)
            return held


class Smoother:
    """Smoothed series, extended rather than computed anew; one per (run, metric, weight, series key)."""

    def __init__(self, keep: int = 400) -> None:
        self._held: OrderedDict[tuple[str, str, float], tuple[str, Ema]] = OrderedDict()
        self._lock = threading.Lock()
        self._keep = keep

    def smooth(self, run: Run, metric: str, series: Series, weight: float) -> Float32:
        name = (run.id, metric, weight)
        with self._lock:
            held = self._held.pop(name, None)
            if held is None or held[0] != series.key:
                held = (series.key, Ema(weight))
            try:
                values = held[1].extend(series.values)
            except ValueError:  # the series was rebuilt shorter under the same key
                held = (series.key, Ema(weight))
                values = held[1].extend(series.values)
            self._held[name] = held
            while len(self._held) > self._keep:
                self._held.popitem(last=False)
            return values


def parse_view(raw: Any, view: View) -> None:
    """Take over a page's description of its view.

    Raises:
        ValueError: a field is missing or out of range; the text names it.
    """
    if not isinstance(raw, dict):
        raise ValueError("view must be an object")
    runs = raw.get("runs")
    charts = raw.get("charts")
    if not isinstance(runs, list) or not isinstance(charts, list):
        raise ValueError("view.runs and view.charts must be lists")
    smoothing = raw.get("smoothing", 0.0)
    if not isinstance(smoothing, (int, float)) or not 0.0 <= smoothing < 1.0:
        raise ValueError("view.smoothing must be at least 0 and below 1")
    axis = raw.get("axis", "step")
    if axis not in ("step", "time", "tokens"):
        raise ValueError(f"view.axis must be step, time or tokens, not {axis!r}")
    parsed = []
    for chart in charts[:MAX_CHARTS]:
        span = chart.get("span")
        parsed.append(
            Chart(
                id=str(chart["id"])[:300],
                metric=str(chart["metric"])[:300],
                pixels=int(min(4000, max(50, chart.get("pixels", 500)))),
                span=None if not span else (float(min(span)), float(max(span))),
            )
        )
    view.runs = [str(run)[:2000] for run in runs[:MAX_RUNS]]
    view.charts, view.smoothing, view.axis = parsed, float(smoothing), axis
    if raw.get("fresh"):
        view.sent.clear()
        view.list_seen = -1
    shown = {(chart.id, run) for chart in view.charts for run in view.runs}
    view.sent = {key: sent for key, sent in view.sent.items() if key in shown}


def x_values(run: Run, series: Series, axis: str) -> Float64 | Int64 | None:
    """The x of every point of ``series``; None when the run's logs do not tell."""
    if axis == "step":
        return series.steps
    known = run.axis(axis)
    if known is None:
        return None
    steps, values = known
    if len(steps) == len(series.steps) and steps[0] == series.steps[0] and steps[-1] == series.steps[-1]:
        return values
    return np.interp(series.steps, steps, values)


def _x_of_steps(run: Run, steps: Int64, axis: str) -> Float64 | Int64 | None:
    if axis == "step":
        return steps
    known = run.axis(axis)
    return None if known is None else np.interp(steps, known[0], known[1])


def line_update(
    run: Run, metric: str, chart: Chart, view: View, smoother: Smoother
) -> tuple[dict[str, Any] | None, Sent]:
    """What a page lacks of one line: None when nothing, else the points from ``at`` on (null: all).

    The returned ``Sent`` is what the page has afterwards.
    """
    series = run.series(metric)
    x = x_values(run, series, view.axis) if len(series.steps) else series.steps
    if x is None:
        state: tuple[Any, ...] = (metric, "no axis", view.axis)
        old = view.sent.get((chart.id, run.id))
        sent = Sent(state, 0, 0.0)
        return (None if old is not None and old.state == state else {"key": metric, "none": view.axis}), sent
    begin, end = 0, len(series.values)
    if chart.span is not None and end:
        begin = max(0, int(np.searchsorted(x, chart.span[0])) - 1)
        end = min(end, int(np.searchsorted(x, chart.span[1], side="right")) + 1)
    width = bucket_width(max(0, end - begin), max(100, chart.pixels))
    begin = begin // width * width
    origin = float(x[0]) if len(x) and float(x[-1]) > _FLOAT32_EXACT and view.axis == "step" else 0.0
    state = (
        metric,
        series.key,
        width,
        begin,
        chart.span,
        view.smoothing,
        view.axis,
        origin,
        len(run.resumed_at),
    )
    last = float(series.values[end - 1]) if end > begin else 0.0
    sent = Sent(state, end, last)
    old = view.sent.get((chart.id, run.id))
    at = None
    if old is not None and old.state == state and old.end <= end:
        if old.end == end and (old.last == last or (last != last and old.last != old.last)):
            return None, sent
        at = max(begin, (old.end - 1) // width * width)
    first = begin if at is None else at
    reduced = reduce_min_max(series.values, width, first, end)
    keep = reduced.keep
    line: dict[str, Any] = {
        "key": metric,
        "at": None if at is None else float(np.float32(float(x[at]) - origin)),
        "x0": origin,
        "x": packed(x[keep] - origin),
        "y": packed(_line_values(series.values[keep])),
        "width": width,
    }
    if view.smoothing > 0:
        smooth = smoother.smooth(run, metric, series, view.smoothing)
        kept = reduce_min_max(smooth, width, first, end).keep
        line["sx"], line["sy"] = packed(x[kept] - origin), packed(smooth[kept])
    if len(reduced.broken):
        shown = reduced.broken[:MAX_BROKEN]
        line["broken"] = [[float(x[i]), _kind(series.values[i])] for i in shown]
        line["broken_count"] = len(reduced.broken)
    if at is None:
        marks = _x_of_steps(run, np.array(run.resumed_at, dtype=np.int64), view.axis)
        line["marks"] = [] if marks is None else [float(mark) for mark in marks]
        line["branches"] = [
            b for steps, values in series.branches if (b := _branch(run, steps, values, view, chart))
        ]
        line["origin"] = origin
    return line, sent


def _branch(run: Run, steps: Int64, values: Float32, view: View, chart: Chart) -> dict[str, str] | None:
    x = _x_of_steps(run, steps, view.axis)
    if x is None:
        return None
    keep = reduce_min_max(values, bucket_width(len(values), max(100, chart.pixels // 2))).keep
    return {"x": packed(x[keep]), "y": packed(_line_values(values[keep]))}


def _line_values(values: Float32) -> Float32:
    """inf would destroy the y axis: the line breaks there and a marker says so."""
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def _kind(value: float) -> str:
    if value != value:
        return "NaN"
    return "inf" if value > 0 else "-inf"
