"""Follow a dump folder: list its steps, compute each step's metrics once, keep them as curves."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from monitor.log_parser import Float32, Int32, Int64
from monitor.reward_parts import RewardParts, name_of
from monitor.samples import SampleError, StepSamples, read_samples, step_metrics, whole_file

_STEP_FILE = re.compile(r"^(\d{1,15})\.jsonl$")


@dataclass
class _Known:
    mark: tuple[float, int]
    metrics: dict[str, float]
    prompts: Int64
    means: Float32
    counts: Int32
    bad_lines: int


class SampleStats:
    """Steps of one dump folder and the metrics computed from each; the ingest thread calls ``advance``."""

    def __init__(self, folder: Path | None, parts: list[Path]) -> None:
        self.folder = folder
        self.parts = RewardParts(parts)
        self.revision = 0
        self.rebuilt = 0
        self.mtime = 0.0
        self._listed: list[int] = []
        self._folder_mtime = -1.0
        self._known: dict[int, _Known] = {}
        self._series: dict[str, tuple[Int64, Float32]] = {}
        self._error = ""

    def update(self, folder: Path | None, parts: list[Path]) -> None:
        if folder != self.folder:
            self.folder, self._folder_mtime = folder, -1.0
        self.parts.paths = parts

    def steps(self) -> list[int]:
        """Steps that have a dump."""
        return self._listed

    def file(self, step: int) -> Path:
        """The dump of ``step``.

        Raises:
            SampleError: there is none.
        """
        if self.folder is None or step not in set(self._listed):
            raise SampleError(f"no samples were dumped for step {step}")
        return self.folder / f"{step}.jsonl"

    def metrics(self) -> list[str]:
        return list(self._series)

    def series(self, name: str) -> tuple[Int64, Float32]:
        """Steps and values of one computed metric."""
        return self._series[name]

    def problems(self) -> list[str]:
        bad = sum(known.bad_lines for known in self._known.values())
        lines = [text for text in (self._error, self.parts.error) if text]
        return [*lines, f"samples: {bad} lines skipped (not JSON objects)"] if bad else lines

    def history(self, prompt: str) -> list[tuple[int, float, int]]:
        """(step, mean reward, answers) of every step that has this prompt."""
        wanted = crc32(prompt.encode("utf-8", "replace"))
        rows = []
        for step in sorted(self._known):
            known = self._known[step]
            for at in np.flatnonzero(known.prompts == wanted):
                rows.append((step, float(known.means[at]), int(known.counts[at])))
        return rows

    def refresh(self) -> None:
        """List the folder again when it changed."""
        if self.folder is None:
            return
        try:
            mtime = self.folder.stat().st_mtime
            if mtime == self._folder_mtime:
                return
            found = []
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    # A link could lead out of the log folder; verl writes none.
                    if not entry.is_symlink() and (match := _STEP_FILE.match(entry.name)):
                        found.append(int(match.group(1)))
            self._listed, self._folder_mtime, self.mtime, self._error = sorted(found), mtime, mtime, ""
        except OSError as error:
            self._listed, self._error = [], f"samples: {error.strerror or error}"
        self.revision += 1

    def advance(self, budget: Callable[[], bool]) -> bool:
        """Compute the metrics of steps not seen yet; of the newest three again when their files changed."""
        self.refresh()
        if self.folder is None:
            return False
        while self.parts.advance():  # first all parts, so that a step is not judged without its own
            if not budget():
                return False
        todo = [step for step in self._listed if step not in self._known]
        todo += [step for step in self._listed[-3:] if step in self._known]
        changed = False
        for step in todo:
            if not budget():
                break
            changed |= self._take(step)
        if changed:
            self._rebuild()
        return changed

    def joined(self, step: int, read: StepSamples) -> StepSamples:
        """``read`` with the reward parts that were written for this step."""
        parts = self.parts.of_step(step, "train") if self.parts.paths else {}
        if parts:
            for sample in read.samples:
                sample.parts.update(parts.get(sample.uid) or parts.get(name_of(sample.output)) or {})
        return read

    def _take(self, step: int) -> bool:
        assert self.folder is not None
        path = self.folder / f"{step}.jsonl"
        known = self._known.get(step)
        try:
            stat = path.stat()
            mark = (stat.st_mtime, stat.st_size)
            if known is not None and known.mark == mark:
                return False
            read = self.joined(step, read_samples(whole_file(path)))
        except (OSError, SampleError) as error:
            self._error = f"{path.name} cannot be read: {error}"
            self._known[step] = _Known((0.0, 0), {}, *_no_prompts(), 0)
            return True
        first: dict[int, int] = {}
        for at, group in enumerate(read.group_of):
            first.setdefault(int(group), at)
        prompts = np.array(
            [crc32(read.samples[at].prompt.encode("utf-8", "replace")) for at in first.values()],
            dtype=np.int64,
        )
        self._known[step] = _Known(
            mark,
            step_metrics(read),
            prompts,
            read.group_mean.astype(np.float32),
            read.group_size.astype(np.int32),
            read.bad_lines,
        )
        return True

    def _rebuild(self) -> None:
        names = {name for known in self._known.values() for name in known.metrics}
        series: dict[str, tuple[Int64, Float32]] = {}
        for name in sorted(names):
            pairs = [
                (step, self._known[step].metrics[name])
                for step in sorted(self._known)
                if name in self._known[step].metrics
            ]
            steps = np.array([step for step, _ in pairs], dtype=np.int64)
            series[name] = steps, np.array([value for _, value in pairs], dtype=np.float32)
        self._series = series
        self.rebuilt += 1
        self.revision += 1


def _no_prompts() -> tuple[Int64, Float32, Int32]:
    return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int32)
