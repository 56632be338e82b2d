"""What the watcher knows of a run folder: its newest attempt, its newest step, its series."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.gpu_sampler import last_step
from common.launcher import runs
from common.launcher.errors import UserError
from monitor.health import Observation, Rule, evaluate
from monitor.metrics_collector import Collector
from monitor.run import Run

SHOWN = ("critic/score/mean", "train/loss")


class RunState:
    """Reads a run's own files; the metrics through the panel's reader, so that both judge the same numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: dict[str, Any] = runs.read(folder)
        self._collector = Collector(folder)

    def refresh(self) -> None:
        """Read run.json again; a moment in which it cannot be read changes nothing."""
        try:
            self.record = runs.read(self.folder)
        except UserError:
            return

    @property
    def attempt(self) -> dict[str, Any]:
        """The newest attempt."""
        return self.record["attempts"][-1]

    @property
    def knobs(self) -> dict[str, str]:
        return self.record.get("knobs") or {}

    @property
    def name(self) -> str:
        """`method/run`."""
        return f"{self.record['method']}/{self.record['run']}"

    @property
    def console(self) -> Path:
        return self.folder / self.attempt["console"]

    @property
    def metrics(self) -> Path:
        return self.folder / self.attempt["metrics"]

    @property
    def checkpoints(self) -> Path:
        return Path(self.record["checkpoint_dir"])

    def newest_step(self) -> tuple[int, float] | None:
        """(step, when it was written) of the newest attempt; None before its first."""
        try:
            written = self.metrics.stat().st_mtime
        except OSError:
            return None
        step = last_step(self.metrics)
        return None if step is None else (step, written)

    def last_sign(self) -> float:
        """When the newest attempt last touched its metrics, which the DPO trainer does before its first step too."""
        try:
            return self.metrics.stat().st_mtime
        except OSError:
            return 0.0

    def number(self, name: str) -> int:
        """A knob as a number, 0 where it is none."""
        try:
            return int(self.knobs.get(name, "0"))
        except ValueError:
            return 0

    def slow_steps(self) -> tuple[int, ...]:
        """At multiples of these a step does more than train."""
        per_round = self.record.get("steps_per_round") or 0
        whole = per_round in (0, self.record.get("total_steps"))
        return (self.number("TEST_FREQ"), self.number("SAVE_FREQ"), 0 if whole else per_round)

    def protected_steps(self) -> set[int]:
        """Checkpoints that a self-play round still needs: the one that it started from."""
        per_round, step = self.record.get("steps_per_round") or 0, runs.latest_step(self.checkpoints)
        return {step // per_round * per_round} if per_round and step else set()

    def shown_metric(self) -> str:
        """`critic/score/mean 0.412` of the newest step, "" where there is none."""
        try:
            with self.metrics.open("rb") as handle:
                handle.seek(max(0, handle.seek(0, 2) - (1 << 16)))
                lines = handle.read().splitlines()
        except OSError:
            return ""
        for line in reversed(lines):
            try:
                data = json.loads(line)["data"]
            except (ValueError, KeyError, TypeError):
                continue
            key = next((key for key in SHOWN if data.get(key) is not None), None)
            if key:
                return f"{key} {data[key]:.3f}"
        return ""

    def observations(self, rules: list[Rule]) -> list[Observation]:
        """Which rules hold now, over all attempts of the run."""
        self._collector.load_all()
        run = next(iter(self._collector.runs()), None)
        if run is None:
            return []
        return evaluate(rules, run.metrics, lambda name: _pair(run, name))


def _pair(run: Run, name: str) -> tuple[Any, Any]:
    series = run.series(name)
    return series.steps, series.values
