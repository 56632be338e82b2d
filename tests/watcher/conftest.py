"""A run folder on paper: run.json, metrics and a console log that a test writes as verl would."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from common.watcher.settings import load
from common.watcher.watch import Watch


@dataclass
class Paper:
    """The folder, a clock that stands still, and what the watcher said and did."""

    folder: Path
    clock: float = 1_000_000.0
    said: list[str] = field(default_factory=list)
    signals: list[tuple[int, int]] = field(default_factory=list)
    watch: Watch | None = None

    @property
    def checkpoints(self) -> Path:
        return self.folder.parents[2] / "checkpoints" / "grpo" / self.folder.name

    def record(self, **changed: Any) -> None:
        record = {
            "method": "grpo",
            "run": self.folder.name,
            "state": "running",
            "knobs": {"SAVE_FREQ": "0", "TEST_FREQ": "0"},
            "checkpoint_dir": str(self.checkpoints),
            "total_steps": 1000,
            "attempts": [{"n": 1, "metrics": "metrics-1.jsonl", "console": "console-1.log"}],
            **changed,
        }
        (self.folder / "run.json").write_text(json.dumps(record))

    def step(self, number: int, seconds: float = 10.0, **metrics: float) -> None:
        """One more step, *seconds* after the one before."""
        self.clock += seconds
        path = self.folder / "metrics-1.jsonl"
        with path.open("a") as log:
            data = {key.replace("__", "/"): value for key, value in metrics.items()}
            log.write(
                json.dumps(
                    {"step": number, "data": data or {"critic/score/mean": number / 1000}},
                    separators=(",", ":"),
                )
            )
            log.write("\n")
        os.utime(path, (self.clock, self.clock))

    def console(self, text: str) -> None:
        with (self.folder / "console-1.log").open("a") as log:
            log.write(text)

    def checkpoint(self, step: int) -> Path:
        folder = self.checkpoints / f"global_step_{step}"
        (folder / "actor").mkdir(parents=True)
        (folder / "actor" / "model_world_size_1_rank_0.pt").touch()
        (self.checkpoints / "latest_checkpointed_iteration.txt").write_text(str(step))
        return folder

    def start(self, webhook: str = "", form: str = "") -> Watch:
        self.watch = Watch(
            self.folder,
            "no-such-tag",
            4242,
            load(),
            self.said.append,
            now=lambda: self.clock,
            webhook=webhook,
            webhook_format=form,
            interrupt=lambda pid, number: self.signals.append((pid, number)),
        )
        return self.watch

    def beat(self) -> dict[str, Any]:
        return json.loads((self.folder / "heartbeat.json").read_text())

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "watch.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    folder = tmp_path / "logs" / "grpo" / "r"
    folder.mkdir(parents=True)
    found = Paper(folder)
    found.record()
    return found


@pytest.fixture
def running(paper: Paper) -> Callable[[int], Watch]:
    """A watcher that has seen that many steps of ten seconds each."""

    def run(steps: int, **metrics: float) -> Watch:
        watch = paper.start()
        for number in range(1, steps + 1):
            paper.step(number, **metrics)
            watch.tick()
        return watch

    return run
