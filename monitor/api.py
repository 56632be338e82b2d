"""The panel's server functions: one JSON-able dict in, one out. app.py hands them to gr.HTML."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from monitor import health, views
from monitor.api_samples import ApiError, SampleApi, cell
from monitor.metrics_collector import Collector
from monitor.run import Run
from monitor.samples import SampleError
from monitor.settings import Settings

Request = dict[str, Any]
Reply = dict[str, Any]
LANGUAGES = ("en", "zh")
MAX_CSV_ROWS = 3_000_000


class PanelApi:
    """All server functions over one collector. Handlers only read what the ingest thread has published."""

    def __init__(self, collector: Collector, settings: Settings, lang: str = "en") -> None:
        self.collector = collector
        self.settings = settings
        self.lang = lang
        self.sessions = views.Sessions()
        self.smoother = views.Smoother()
        self.samples = SampleApi(collector, settings)
        self._entries: dict[str, tuple[Reply, int]] = {}
        self._gone: dict[str, int] = {}
        self._list_revision = 0
        self._listed_at = 0.0
        self._list_lock = threading.Lock()
        self._health: dict[str, tuple[int, float, str, list[Reply]]] = {}
        self._gpu_reader: Any = None

    def functions(self) -> dict[str, Callable[[Any], Reply]]:
        """Name -> function, each safe to call with anything a browser may send."""
        named = {
            "boot": self.boot, "poll": self.poll, "metrics": self.metrics, "compare": self.compare,
            "samples": self.samples.page, "sample_text": self.samples.sample_text, "history": self.samples.history,
            "gpu": self.gpu, "health": self.health, "export_csv": self.export_csv,
        }  # fmt: skip
        return {name: self._guarded(name, function) for name, function in named.items()}

    @staticmethod
    def _guarded(name: str, function: Callable[[Request], Reply]) -> Callable[[Any], Reply]:
        def call(request: Any) -> Reply:
            try:
                return function(request if isinstance(request, dict) else {})
            except (ApiError, SampleError) as error:
                return {"error": str(error)}
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
                traceback.print_exc(file=sys.stderr)  # for whoever runs the panel; the page gets one line
                return {"error": f"{name}: {type(error).__name__}: {error}"}

        call.__name__ = name
        return call

    # ---- start ------------------------------------------------------------------------------------

    def boot(self, request: Request) -> Reply:
        """What a page needs once: names, groups, texts, first charts."""
        lang = self._lang(request)
        settings = self.settings
        return {
            "lang": lang,
            "refresh": settings.refresh_seconds,
            "charts": settings.charts,
            "selected_at_start": settings.selected_at_start,
            "names": {
                name: {
                    "keys": list(plain.keys),
                    "text": plain.meaning.get(lang) or plain.meaning.get("en", ""),
                }
                for name, plain in settings.names.items()
            },
            "groups": [
                {"id": g.id, "title": g.title[lang], "match": g.pattern.pattern} for g in settings.groups
            ],
            "root": self.collector.root.name,
        }

    def _lang(self, request: Request) -> str:
        wanted = request.get("lang")
        return wanted if wanted in LANGUAGES else self.lang

    # ---- runs and curves --------------------------------------------------------------------------

    def poll(self, request: Request) -> Reply:
        """News for one page since its last call (see views.py)."""
        view, lock = self.sessions.get(str(request.get("session", ""))[:64])
        with lock:
            if "view" in request:
                try:
                    views.parse_view(request["view"], view)
                except (KeyError, TypeError, ValueError) as error:
                    raise ApiError(f"bad view: {error}") from error
            elif request.get("sequence") != view.sequence or not view.sequence:
                return {"resync": True}
            reply: Reply = {}
            self._refresh_list()
            if view.list_seen < self._list_revision:
                reply["list"] = self._list_since(view.list_seen)
                view.list_seen = self._list_revision
            lines = self._lines(view)
            if lines:
                reply["lines"] = lines
            if not self.collector.complete.is_set():
                reply["loading"] = True
            if self.collector.failure:
                reply["failure"] = self.collector.failure
            if reply or "view" in request:
                view.sequence += 1
            else:
                reply["unchanged"] = True
            reply["sequence"] = view.sequence
            return reply

    def _lines(self, view: views.View) -> list[Reply]:
        lines = []
        runs = [(run_id, self.collector.run(run_id)) for run_id in view.runs]
        for chart in view.charts:
            for run_id, run in runs:
                if run is None:
                    continue
                metric = self.resolve(run, chart.metric)
                if metric is None:
                    continue
                line, sent = views.line_update(run, metric, chart, view, self.smoother)
                view.sent[(chart.id, run_id)] = sent
                if line is not None:
                    lines.append({"chart": chart.id, "run": run_id, **line})
        return lines

    def resolve(self, run: Run, name: str) -> str | None:
        """The key that ``name`` (a plain name or a key) stands for in this run; None when it has none."""
        have = run.metrics
        plain = self.settings.names.get(name)
        for key in plain.keys if plain else (name,):
            if key.endswith("*"):
                found = self._validation_key(run) or next((m for m in have if m.startswith(key[:-1])), None)
                if found and found.startswith(key[:-1]):
                    return found
            elif key in have:
                return key
        return None

    def _validation_key(self, run: Run) -> str | None:
        for pattern, _ in self.settings.validation:
            for metric in run.metrics:
                if pattern.search(metric):
                    return metric
        return None

    def _refresh_list(self) -> None:
        now = time.time()
        with self._list_lock:
            if now - self._listed_at < 0.5 and self._entries:
                return
            self._listed_at = now
            seen = set()
            for run in self.collector.runs():
                seen.add(run.id)
                entry = self.entry(run, now)
                held = self._entries.get(run.id)
                if held is None or held[0] != entry:
                    self._list_revision += 1
                    self._entries[run.id] = (entry, self._list_revision)
                    self._gone.pop(run.id, None)
            for run_id in [run_id for run_id in self._entries if run_id not in seen]:
                del self._entries[run_id]
                self._list_revision += 1
                self._gone[run_id] = self._list_revision
            if self._list_revision == 0:
                self._list_revision = 1  # an empty folder is news too, once

    def _list_since(self, seen: int) -> Reply:
        changed = [entry for entry, revision in self._entries.values() if revision > seen]
        gone = [run_id for run_id, revision in self._gone.items() if revision > seen]
        return {"runs": changed, "gone": gone, "notes": self.collector.notes, "full": seen < 0}

    def entry(self, run: Run, now: float) -> Reply:
        """One line of the run list."""
        state, why = run.state(now, self.settings.stall_factor, self.settings.stall_seconds, self.lang)
        if state == "stalled":
            why = ""  # its seconds would make news of every poll; Health tells them
        last_value, best_value, best_step, validation = self._validation(run)
        eta = run.eta(state)
        return {
            "id": run.id,
            "title": run.files.title,
            "method": run.method,
            "model": run.model,
            "state": state,
            "why": why,
            "step": run.last_step,
            "total": run.total_steps,
            "eta": None if eta is None else round(eta),
            "pace": run.step_seconds and float(f"{run.step_seconds:.3g}"),
            "validation": validation,
            "last": last_value,
            "best": best_value,
            "best_step": best_step,
            "started": run.started(),
            "written": round(run.written),
            "attempts": len(run.resumed_at) + 1,
            "sources": run.sources(),
            "problems": run.problems()[:5],
            "metrics": len(run.metrics),
            "rollouts": len(run.samples.steps()),
            "validations": len(run.validation.steps()),
            "results": len(run.files.results),
        }

    def _validation(self, run: Run) -> tuple[float | None, float | None, int | None, str]:
        for pattern, best in self.settings.validation:
            for metric in run.metrics:
                if pattern.search(metric):
                    series = run.series(metric)
                    finite = np.flatnonzero(np.isfinite(series.values))
                    if not len(finite):
                        continue
                    values = series.values[finite]
                    at = int(values.argmax() if best == "max" else values.argmin())
                    return float(values[-1]), float(values[at]), int(series.steps[finite[at]]), metric
        return None, None, None, ""

    def metrics(self, request: Request) -> Reply:
        """Names of all metrics of the chosen runs, and for plain names which key each run uses."""
        runs = self._chosen(request)
        names = sorted({metric for run in runs for metric in run.metrics})
        plain: dict[str, list[str]] = {}
        for name in self.settings.names:
            keys = {key for run in runs if (key := self.resolve(run, name)) is not None}
            if keys:
                plain[name] = sorted(keys)
        return {"metrics": names, "plain": plain}

    def compare(self, request: Request) -> Reply:
        """Settings of the chosen runs side by side; ``differs`` tells rows that are not the same in all."""
        runs = self._chosen(request)
        tables = [run.knobs() for run in runs]
        names = list(dict.fromkeys(name for table in tables for name in table))
        rows = []
        for name in names:
            cells = [cell(table.get(name)) for table in tables]
            rows.append({"name": name, "cells": cells, "differs": len(set(cells)) > 1})
        return {"runs": [run.id for run in runs], "rows": rows}

    def export_csv(self, request: Request) -> Reply:
        """Every point, not reduced, of one chart over the chosen runs: run,metric,step,value."""
        name = str(request.get("metric", ""))
        out = ["run,metric,step,value"]
        for run in self._chosen(request):
            metric = self.resolve(run, name)
            if metric is None:
                continue
            series = run.series(metric)
            if len(out) + len(series.steps) > MAX_CSV_ROWS:
                raise ApiError(f"more than {MAX_CSV_ROWS} rows: choose fewer runs")
            head = f"{_csv(run.id)},{_csv(metric)}"
            pairs = zip(series.steps.tolist(), series.values.tolist(), strict=True)
            out += [f"{head},{step},{value!r}" for step, value in pairs]
        return {"csv": "\n".join(out) + "\n"}

    def _chosen(self, request: Request) -> list[Run]:
        wanted = request.get("runs")
        if not isinstance(wanted, list):
            raise ApiError("runs must be a list of run ids")
        return [
            run for item in wanted[: views.MAX_RUNS] if (run := self.collector.run(str(item))) is not None
        ]

    # ---- GPU and health ---------------------------------------------------------------------------

    def gpu(self, request: Request) -> Reply:
        """This host now, and the chosen run's recorded samples over time."""
        from common.gpu_sampler import GpuReader, host_sample  # psutil and NVML only when the tab is opened

        if self._gpu_reader is None:
            self._gpu_reader = GpuReader()
        reply: Reply = {"live": host_sample(self._gpu_reader), "reason": self._gpu_reader.reason}
        run = self.collector.run(str(request.get("run", "")))
        if run is None:
            return reply
        times, steps, columns = run.gpu.table()
        reply["recorded"] = {"hosts": list(run.gpu.latest.values()), "count": len(times)}
        if len(times):
            begin = float(times[0])
            width = views.bucket_width(len(times), 600)
            series = {}
            for name, values in columns.items():
                keep = views.reduce_min_max(values, width).keep
                series[name] = {"x": views.packed(times[keep] - begin), "y": views.packed(values[keep])}
            reply["recorded"].update({"begin": begin, "series": series})
            known = np.flatnonzero(np.diff(steps, prepend=-1) > 0)
            thin = known[:: max(1, len(known) // 50)]
            reply["recorded"]["steps"] = [[float(times[i]) - begin, int(steps[i])] for i in thin]
        return reply

    def health(self, request: Request) -> Reply:
        """Observations on the chosen runs."""
        lang = self._lang(request)
        runs = self._chosen(request)
        return {
            "runs": [{"id": run.id, "observations": self.observations(run, lang)} for run in runs],
            "rules": len(self.settings.rules),
        }

    def observations(self, run: Run, lang: str) -> list[Reply]:
        """What looks wrong with one run, worst first; computed again at most every ``health_seconds``."""
        now = time.monotonic()
        held = self._health.get(run.id)
        fresh = held is not None and held[2] == lang and now - held[1] < self.settings.health_seconds
        if held is not None and (fresh or (held[2] == lang and held[0] == run.revision)):
            return held[3] + self._state_observations(run, lang)
        found = health.evaluate(self.settings.rules, run.metrics, lambda name: _series_pair(run, name))
        rank = {"bad": 0, "warn": 1, "info": 2}
        listed = [
            {
                "rule": hit.rule.id,
                "severity": hit.rule.severity,
                "text": hit.sentence(lang),
                "advice": hit.advice(lang),
                "metric": hit.metric,
                "since": hit.since,
            }
            for hit in sorted(found, key=lambda hit: (rank.get(hit.rule.severity, 1), hit.since))
        ]
        self._health[run.id] = (run.revision, now, lang, listed)
        return listed + self._state_observations(run, lang)

    def _state_observations(self, run: Run, lang: str) -> list[Reply]:
        state, why = run.state(time.time(), self.settings.stall_factor, self.settings.stall_seconds, lang)
        rows: list[Reply] = []
        if state in ("failed", "stalled"):
            label = {
                "failed": ("The run failed", "训练失败"),
                "stalled": ("The run seems stuck", "训练似乎卡住"),
            }[state]
            rows.append(_plain("bad" if state == "failed" else "warn", f"{label[lang == 'zh']}: {why}", run))
        rows += [_plain("info", line, run) for line in run.problems()]
        return rows


def _plain(severity: str, text: str, run: Run) -> Reply:
    return {
        "rule": "",
        "severity": severity,
        "text": text,
        "advice": "",
        "metric": "",
        "since": run.last_step,
    }


def _series_pair(run: Run, name: str) -> tuple[Any, Any]:
    series = run.series(name)
    return series.steps, series.values


def _csv(text: str) -> str:
    if text[:1] in "=+-@\t\r":
        text = "'" + text  # a spreadsheet would run it as a formula
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n\r') else text
