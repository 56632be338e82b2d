"""What the watcher knows of a run folder: its newest attempt, its newest step, its series."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.gpu_sampler import last_step
from common.launcher import runs
from common.launcher.errors import UserError
from common.launcher.hydra_words import value_of
from monitor.health import Observation, Rule, evaluate
from monitor.metrics_collector import Collector
from monitor.prompt_errors import METRIC as PROMPT_ERRORS
from monitor.prompt_errors import PromptErrors
from monitor.run import Run

SHOWN = ("critic/score/mean", "train/loss")
LOGS_FIRST = ("sft", "dpo")


class RunState:
    """Reads a run's own files; the metrics through the panel's reader, so that both judge the same numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: dict[str, Any] = runs.read(folder)
        self._collector = Collector(folder)
        self._prompt_errors = PromptErrors()

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

    @property
    def save_freq(self) -> int:
        """Steps between two checkpoints, 0 or less for none."""
        return self._frequency("save")

    def _frequency(self, what: str) -> int:
        """`trainer.<what>_freq` as verl got it: a key=value of the user's overrules the knob."""
        words = [*(self.record.get("command") or ()), *(self.record.get("extra") or ())]
        for value in (value_of(words, f"trainer.{what}_freq"), self.knobs.get(f"{what.upper()}_FREQ", "")):
            try:
                return int(value)
            except ValueError:
                continue
        return 0

    @property
    def logs_first(self) -> bool:
        """Whether the trainer logs a step before it validates and saves."""
        return self.record["method"] in LOGS_FIRST

    def slow_steps(self) -> tuple[int, ...]:
        """At multiples of these a step does more than train."""
        per_round = self.record.get("steps_per_round") or 0
        whole = per_round in (0, self.record.get("total_steps"))
        return (self._frequency("test"), self.save_freq, 0 if whole else per_round)

    def protected_steps(self) -> set[int]:
        """Checkpoints that self-play needs: the one that the newest round started from, or the next one will."""
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

    def is_new(self, hit: Observation) -> bool:
        """Whether the newest attempt has a part in it: prompt errors are counted over all attempts."""
        if hit.metric != PROMPT_ERRORS:
            return True
        while self._prompt_errors.advance([self.console]):
            pass
        return self._prompt_errors.count > 0


def _pair(run: Run, name: str) -> tuple[Any, Any]:
    series = run.series(name)
    return series.steps, series.values
