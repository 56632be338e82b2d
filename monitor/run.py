"""One run: its attempts stitched into one series per metric, and what is known of its state."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from monitor import knobs, lifecycle, log_parser
from monitor.discover import RunFiles
from monitor.gpu_log import GpuLog
from monitor.judge_log import JudgeLog
from monitor.log_parser import Int64
from monitor.prompt_errors import METRIC as PROMPT_ERRORS
from monitor.prompt_errors import PromptErrors
from monitor.sample_stats import SampleStats
from monitor.series import Float64, Segment
from monitor.stitch import Series, stitched
from monitor.tail import LogTail, read_end

_METHODS = ("sft", "ppo", "grpo", "dpo", "gspo")
_TIME_KEYS = ("perf/time_per_step", "timing_s/step")
_TOKEN_KEYS = ("perf/total_num_tokens", "train/global_tokens")


def _epoch(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


class Run:
    """A run as the panel knows it. Written by the ingest thread, read by request handlers."""

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        self.id = files.id
        self.metric_tails: dict[int, LogTail] = {}
        self.console_tails: dict[int, LogTail] = {}
        self.event_tails: list[LogTail] = []
        self.gpu = GpuLog(files.gpu)
        self.judge = JudgeLog(files.judge)
        self.samples = SampleStats(files.rollouts, files.parts)
        self.validation = SampleStats(files.validation, [])
        self.prompt_errors = PromptErrors()
        self.manifest: dict[str, Any] = {}
        self.manifest_error = ""
        self._manifest_stat: tuple[float, int] | None = None
        self.facts = log_parser.ConsoleFacts()
        self._facts_stat: tuple[float, int] | None = None
        self.observed: list[tuple[float, int]] = []
        self._cache: dict[Any, tuple[int, Any]] = {}
        self.update_files(files)

    # ---- written by the ingest thread -------------------------------------------------------------

    def update_files(self, files: RunFiles) -> None:
        """Take over a new scan's list of files; tails of files that are still there are kept."""
        self.files = files
        self.metric_tails = _kept(self.metric_tails, files.metrics, "metrics")
        self.console_tails = _kept(self.console_tails, files.consoles, "console")
        known = {tail.path: tail for tail in self.event_tails}
        self.event_tails = [known.get(path) or LogTail(path, "tfevents") for path in sorted(files.events)]
        self.gpu.path, self.judge.path = files.gpu, files.judge
        self.samples.update(files.rollouts, files.parts)
        self.validation.update(files.validation, [])

    def tails(self) -> list[LogTail]:
        """The files to read now: consoles and event files only where they are needed."""
        wanted = list(self.metric_tails.values())
        for tail in wanted:
            if not tail.size:
                tail.refresh()  # else a metrics file not looked at yet would seem empty
        for number, tail in self.console_tails.items():
            primary = self.metric_tails.get(number)
            empty = primary is None or (not primary.index.segments and not primary.behind)
            if empty or self._has_nulls(primary):
                wanted.append(tail)
        if not any(tail.index.segments for tail in wanted) and not any(tail.behind for tail in wanted):
            wanted += self.event_tails
        return wanted

    def _has_nulls(self, tail: LogTail | None) -> bool:
        """Null in the file logger may be NaN or inf: then the console is read too, which tells which."""
        if tail is None:
            return False
        return any(
            not np.isfinite(column.view()[1][-2000:]).all()
            for segment in tail.index.segments[-1:]
            for column in segment.columns.values()
        )

    def refresh_manifest(self) -> bool:
        """Read run.json again when it changed; True when it did."""
        path = self.files.manifest
        if path is None:
            return False
        try:
            stat = path.stat()
            mark = (stat.st_mtime, stat.st_size)
            if mark == self._manifest_stat:
                return False
            loaded = orjson.loads(path.read_bytes())
            if not isinstance(loaded, dict):
                raise ValueError("not a JSON object")
            self.manifest, self.manifest_error, self._manifest_stat = loaded, "", mark
            return True
        except (OSError, ValueError) as error:
            text = f"run.json cannot be read: {error}"
            changed = text != self.manifest_error
            self.manifest_error = text
            return changed

    def refresh_facts(self) -> bool:
        """Read the end of the newest console log again when it changed."""
        if not self.console_tails:
            return False
        tail = self.console_tails[max(self.console_tails)]
        try:
            stat = tail.path.stat()
        except OSError:
            return False
        mark = (stat.st_mtime, stat.st_size)
        if mark == self._facts_stat:
            return False
        self._facts_stat = mark
        total = self.facts.total_steps
        self.facts = log_parser.console_facts(read_end(tail.path))
        self.facts.total_steps = self.facts.total_steps or total
        return True

    def advance_prompt_errors(self) -> bool:
        """Count on in the console logs; True when there is more to read."""
        return self.prompt_errors.advance([path for _, path in self.files.consoles])

    def observe(self, now: float) -> None:
        """Remember when which step was seen, for runs whose logs hold no times."""
        step = self.last_step
        if step >= 0 and (not self.observed or self.observed[-1][1] < step):
            self.observed.append((now, step))

    # ---- read by request handlers -----------------------------------------------------------------

    @property
    def revision(self) -> int:
        """Grows with every change of the numbers."""
        tails = [*self.metric_tails.values(), *self.console_tails.values(), *self.event_tails]
        extra = self.gpu.revision + self.judge.revision + self.samples.revision + self.validation.revision
        return sum(tail.revision for tail in tails) + extra + self.prompt_errors.revision

    def _memo(self, name: Any, make: Any) -> Any:
        revision = self.revision
        held = self._cache.get(name)
        if held is not None and held[0] == revision:
            return held[1]
        value = make()
        if len(self._cache) > 4000:
            self._cache.clear()
        self._cache[name] = (revision, value)
        return value

    def lanes(self) -> list[tuple[int, list[list[Segment]]]]:
        """Per attempt the segment lists to take metrics from, best source first."""
        return self._memo("lanes", self._lanes)

    def _lanes(self) -> list[tuple[int, list[list[Segment]]]]:
        numbers = sorted({*self.metric_tails, *self.console_tails})
        lanes = []
        for number in numbers:
            sources = [
                tails[number].index.segments
                for tails in (self.metric_tails, self.console_tails)
                if number in tails and tails[number].index.segments
            ]
            if sources:
                lanes.append((number, sources))
        if not lanes:
            lanes = [
                (number, [tail.index.segments])
                for number, tail in enumerate(self.event_tails, 1)
                if tail.index.segments
            ]
        return lanes

    @property
    def metrics(self) -> list[str]:
        """All metric names of the run."""
        return self._memo("metrics", self._metrics)

    def _metrics(self) -> list[str]:
        names: dict[str, None] = {}
        for _, sources in self.lanes():
            for segments in sources:
                for segment in segments:
                    names.update(dict.fromkeys(segment.columns))
        for _, columns in (self.gpu.by_step(), self.judge.by_step()):
            names.update(dict.fromkeys(columns))
        if self.prompt_errors.count:
            names[PROMPT_ERRORS] = None
        names.update(dict.fromkeys("samples/" + key for key in self.samples.metrics()))
        names.update(dict.fromkeys("validation/" + key for key in self.validation.metrics()))
        return list(names)

    def series(self, metric: str) -> Series:
        """The stitched series of ``metric``; empty when the run does not have it."""
        return self._memo(("series", metric), lambda: self._series(metric))

    def _series(self, metric: str) -> Series:
        if metric == PROMPT_ERRORS:
            return Series(f"{metric}{self.prompt_errors.revision}", *self.prompt_errors.series(), [])
        for prefixes, revision, by_step in (
            (("gpu/", "host/"), self.gpu.revision, self.gpu.by_step),
            (("judge/",), self.judge.revision, self.judge.by_step),
        ):
            if metric.startswith(prefixes) and metric in (table := by_step())[1]:
                return Series(f"{prefixes[0]}{revision}", table[0], table[1][metric], [])
        for prefix, stats in (("samples/", self.samples), ("validation/", self.validation)):
            if metric.startswith(prefix) and metric[len(prefix) :] in stats.metrics():
                steps, values = stats.series(metric[len(prefix) :])
                return Series(f"{prefix}{stats.rebuilt}", steps, values, [])
        return stitched(metric, [sources for _, sources in self.lanes()])

    @property
    def resumed_at(self) -> list[int]:
        """Steps at which a later attempt begins."""
        starts = [segment.first_step for _, sources in self.lanes() for segment in sources[0] if segment.used]
        return starts[1:]

    @property
    def last_step(self) -> int:
        """The newest step of the newest attempt, -1 before the first."""
        lanes = self.lanes()
        if lanes:
            return lanes[-1][1][0][-1].last_step
        return max([*self.samples.steps()[-1:], *self.validation.steps()[-1:]], default=-1)

    def axis(self, name: str) -> tuple[Int64, Float64] | None:
        """Steps and x values for the time (seconds) or tokens axis; None when the run's logs hold none."""
        return self._memo(("axis", name), lambda: self._axis(name))

    def _axis(self, name: str) -> tuple[Int64, Float64] | None:
        for metric in _TIME_KEYS if name == "time" else _TOKEN_KEYS:
            series = self.series(metric)
            if len(series.steps):
                values = series.values.astype(np.float64)
                finite = np.isfinite(values)
                typical = float(np.median(values[finite])) if finite.any() else 0.0
                return series.steps, np.cumsum(np.where(finite, values, typical))
        if name != "time":
            return None
        steps, times = self.gpu.step_times()
        if len(steps) > 1:
            return steps, times - times[0]
        if len(self.observed) > 1:
            seen = np.array(self.observed)
            return seen[:, 1].astype(np.int64), seen[:, 0] - seen[0, 0]
        return None

    @property
    def step_seconds(self) -> float | None:
        """Median seconds per step of the last 50 steps."""
        return self._memo("step_seconds", self._step_seconds)

    def _step_seconds(self) -> float | None:
        for metric in _TIME_KEYS:
            values = self.series(metric).values[-50:]
            values = values[np.isfinite(values)]
            if len(values):
                return float(np.median(values))
        axis = self.axis("time")
        if axis is not None:
            steps, times = axis[0][-50:], axis[1][-50:]
            if len(steps) > 1 and steps[-1] > steps[0]:
                return float((times[-1] - times[0]) / (steps[-1] - steps[0]))
        return None

    @property
    def written(self) -> float:
        """When one of the run's logs last grew (epoch seconds)."""
        tails = [*self.metric_tails.values(), *self.console_tails.values(), *self.event_tails]
        times = [tail.mtime for tail in tails if tail.mtime]
        for path in [*(tail.path for tail in tails if not tail.mtime), *self.files.results]:
            try:
                times.append(path.stat().st_mtime)
            except OSError:
                continue
        return max([*times, self.samples.mtime, self.validation.mtime])

    @property
    def total_steps(self) -> int | None:
        total = self.manifest.get("total_steps")
        return total if isinstance(total, int) and total > 0 else self.facts.total_steps

    @property
    def method(self) -> str:
        """The training method, from run.json, else the folder's name, else the metrics present."""
        named = self.manifest.get("method")
        if isinstance(named, str) and named:
            return named
        for part in reversed(Path(self.id).parts):
            for word in re.split(r"[^a-z]+", part.lower()):
                if word in _METHODS:
                    return word
        names = set(self.metrics)
        if self.files.results:
            return "test"
        if any(name.startswith("train/rewards/") for name in names):
            return "dpo"
        if "critic/vf_loss" in names:
            return "ppo"
        if "train/loss" in names:
            return "sft"
        return "rl" if any(name.startswith("actor/") for name in names) else ""

    @property
    def model(self) -> str:
        model = self.manifest.get("model")
        return str(model) if model else ""

    def knobs(self) -> dict[str, Any]:
        """The run's settings with secrets masked, verl overrides of its command included."""
        return knobs.shown(self.manifest)

    def state(
        self, now: float, stall_factor: float, stall_seconds: float, lang: str = "en"
    ) -> tuple[str, str]:
        """(running | finished | failed | interrupted | stalled | ended | samples, one line why)."""
        return lifecycle.state(self, now, stall_factor, stall_seconds, lang)

    def eta(self, state: str) -> float | None:
        """Seconds left, when the run is going and its length is known."""
        total, pace, step = self.total_steps, self.step_seconds, self.last_step
        if state != "running" or not total or not pace or step < 0:
            return None
        return max(0.0, (total - step) * pace)

    def started(self) -> float | None:
        return _epoch(self.manifest.get("created"))

    def problems(self) -> list[str]:
        """What could not be read, in words."""
        lines = [self.manifest_error] if self.manifest_error else []
        for tail in [*self.metric_tails.values(), *self.console_tails.values(), *self.event_tails]:
            if tail.error:
                lines.append(f"{tail.path.name}: {tail.error}")
            if tail.index.bad_lines:
                lines.append(
                    f"{tail.path.name}: {tail.index.bad_lines} lines skipped ({tail.index.first_bad})"
                )
        lines += (
            self.gpu.problems() + self.judge.problems() + self.samples.problems() + self.validation.problems()
        )
        return lines

    def sources(self) -> list[str]:
        """Names of the files that the curves come from."""
        tails = [*self.metric_tails.values(), *self.console_tails.values(), *self.event_tails]
        return [tail.path.name for tail in tails if tail.index.segments]


def _kept(old: dict[int, LogTail], files: list[tuple[int, Path]], kind: str) -> dict[int, LogTail]:
    known = {tail.path: tail for tail in old.values()}
    numbered: dict[int, LogTail] = {}
    for number, path in files:
        while number in numbered:
            number += 1
        numbered[number] = known.get(path) or LogTail(path, kind)
    return numbered
