"""Rollouts, validation generations and ``test.sh`` results: rows of text with scores, grouped by prompt.

verl dumps ``<folder>/<step>.jsonl`` with ``input, output, gts, score, step`` and, for training, ``uid`` =
``<prompt>_<session>_<index>``; validation adds ``reward`` (final) and the reward's own keys. A file may be
half-written or rewritten at any moment, so only complete lines are read and a changed file is read again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import orjson
import regex

from monitor.log_parser import Int32, Int64
from monitor.series import Float64

_KNOWN = {
    "input", "prompt", "output", "response", "gts", "ground_truth", "score", "reward", "step", "uid",
    "item", "sample", "key", "truncated", "finish_reason",  # of test.sh: where the answer stands, how it ended
}  # fmt: skip
_ENDS = frozenset(".!?。！？)]}>\"'”’`*|$）】》")
_CACHE_BYTES = 128 << 20
MAX_FILE_BYTES = 512 << 20
PATTERN_SECONDS = 1.0
RIGHT_FROM = 0.5


class SampleError(ValueError):
    """A request about samples that cannot be answered; the text says why."""


@dataclass
class Sample:
    """One answer. ``final`` is the reward used in training: ``reward`` where dumped, else ``score``."""

    prompt: str
    output: str
    truth: str
    score: float
    final: float
    uid: str
    group: str
    parts: dict[str, Any]
    truncated: bool


@dataclass
class StepSamples:
    """All samples of one step, with the arrays that filters need (shape [samples])."""

    samples: list[Sample]
    scores: Float64
    lengths: Int64
    group_of: Int32
    groups: list[str]
    bad_lines: int = 0
    size: int = 0
    group_mean: Float64 = field(default_factory=lambda: np.empty(0))
    group_std: Float64 = field(default_factory=lambda: np.empty(0))
    group_low: Float64 = field(default_factory=lambda: np.empty(0))
    group_high: Float64 = field(default_factory=lambda: np.empty(0))
    group_size: Int64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def advantages(self) -> Float64:
        """GRPO's advantage of each sample in its group: (reward - mean) / (std + 1e-6); 0 for a lone one."""
        mean, std = self.group_mean[self.group_of], self.group_std[self.group_of]
        alone = self.group_size[self.group_of] < 2
        return np.where(alone, 0.0, (self.scores - mean) / (std + 1e-6))


@dataclass
class Filter:
    """Which samples to show. Bounds are inclusive; ``outcome`` judges a whole group."""

    low: float | None = None
    high: float | None = None
    shortest: int | None = None
    longest: int | None = None
    text: str = ""
    is_regex: bool = False
    outcome: str = ""
    truncated: bool = False
    prompt: str = ""


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(item, dict) and "role" in item for item in value):
        return "\n\n".join(f"[{item['role']}]\n{_text(item.get('content'))}" for item in value)
    return orjson.dumps(value, default=str).decode()


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def looks_truncated(row: dict[str, Any], output: str) -> bool:
    """Whether an answer was cut: its own field says so or, without one, it ends in mid-sentence."""
    if "truncated" in row:
        return bool(row["truncated"])
    if row.get("finish_reason"):
        return row["finish_reason"] == "length"
    end = output.rstrip()[-1:]
    return bool(end) and end not in _ENDS and len(output) > 200


def read_sample(row: dict[str, Any]) -> Sample:
    """One dumped row. Unknown keys become reward parts, shown beside the score."""
    prompt = _text(row.get("input", row.get("prompt")))
    output = _text(row.get("output", row.get("response")))
    uid = str(row.get("uid") or "")
    score = _number(row.get("score"))
    final = _number(row["reward"]) if "reward" in row else score
    group = (
        uid.rsplit("_", 2)[0] if uid.count("_") >= 2 else f"p{crc32(prompt.encode('utf-8', 'replace')):08x}"
    )
    parts = {
        key: value
        for key, value in row.items()
        if key not in _KNOWN and value not in ("", None) and not isinstance(value, (dict, list))
    }
    nested = row.get("parts")
    if isinstance(nested, dict):
        parts.update(nested)
    truth = _text(row.get("gts", row.get("ground_truth")))
    return Sample(prompt, output, truth, score, final, uid, group, parts, looks_truncated(row, output))


def read_samples(data: bytes) -> StepSamples:
    """Parse the complete lines of one dump; a last line without its newline counts when it is whole JSON."""
    samples: list[Sample] = []
    bad = 0
    lines = data.split(b"\n")
    for position, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
            samples.append(read_sample(row))
        except ValueError:
            bad += position < len(lines) - 1  # the last line may still be being written
    return grouped(samples, bad, len(data))


def grouped(samples: list[Sample], bad_lines: int = 0, size: int = 0) -> StepSamples:
    """Collect samples into a step with its group statistics."""
    index: dict[str, int] = {}
    group_of = np.array([index.setdefault(s.group, len(index)) for s in samples], dtype=np.int32)
    scores = np.array([s.final for s in samples], dtype=np.float64)
    lengths = np.array([len(s.output) for s in samples], dtype=np.int64)
    step = StepSamples(samples, scores, lengths, group_of, list(index), bad_lines, size)
    count = len(index)
    safe = np.nan_to_num(scores, nan=0.0, posinf=0.0, neginf=0.0)
    step.group_size = np.bincount(group_of, minlength=count)
    size_or_one = np.maximum(step.group_size, 1)
    step.group_mean = np.bincount(group_of, safe, minlength=count) / size_or_one
    spread = np.bincount(group_of, (safe - step.group_mean[group_of]) ** 2, minlength=count)
    step.group_std = np.sqrt(spread / np.maximum(step.group_size - 1, 1))  # as torch.std in verl's GRPO
    step.group_low, step.group_high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(step.group_low, group_of, safe)
    np.maximum.at(step.group_high, group_of, safe)
    return step


def step_metrics(step: StepSamples) -> dict[str, float]:
    """What verl does not log: spread of rewards, groups that teach nothing, duplicates, reward failures."""
    if not step.samples:
        return {}
    finite = step.scores[np.isfinite(step.scores)]
    out = {
        "reward_mean": float(finite.mean()) if len(finite) else float("nan"),
        "reward_std": float(finite.std()) if len(finite) else float("nan"),
        "length_mean_chars": float(step.lengths.mean()),
        "truncated_share": sum(s.truncated for s in step.samples) / len(step.samples),
        "reward_error_share": _error_share(step),
    }
    several = step.group_size >= 2
    if several.any():
        equal = step.group_high - step.group_low <= 1e-9
        out["within_group_std"] = float(step.group_std[several].mean())
        out["zero_advantage_share"] = float(equal[several].mean())
        distinct = len({(s.group, s.output) for s in step.samples if several[0] or len(s.group)})
        out["duplicate_share"] = 1.0 - distinct / len(step.samples)
    names = {
        key for s in step.samples[:64] for key, value in s.parts.items() if isinstance(value, (int, float))
    }
    for name in sorted(names)[:32]:
        values = [v for s in step.samples if isinstance(v := s.parts.get(name), (int, float))]
        out[f"part/{name}"] = float(np.mean(values)) if values else float("nan")
    return out


def _error_share(step: StepSamples) -> float:
    wrong = sum(
        not np.isfinite(score) or bool(sample.parts.get("error") or sample.parts.get("reward_error"))
        for sample, score in zip(step.samples, step.scores, strict=True)
    )
    return wrong / len(step.samples)


def matching(step: StepSamples, wanted: Filter) -> Int64:
    """Indices of the samples that pass every set bound, in file order.

    Raises:
        SampleError: the pattern is not a regular expression, or takes longer than a second.
    """
    keep = np.ones(len(step.samples), dtype=bool)
    if wanted.low is not None:
        keep &= step.scores >= wanted.low
    if wanted.high is not None:
        keep &= step.scores <= wanted.high
    if wanted.shortest is not None:
        keep &= step.lengths >= wanted.shortest
    if wanted.longest is not None:
        keep &= step.lengths <= wanted.longest
    if wanted.outcome:
        keep &= _outcome(step, wanted.outcome)[step.group_of]
    indices = np.flatnonzero(keep)
    if wanted.truncated:
        indices = np.array([i for i in indices if step.samples[i].truncated], dtype=np.int64)
    if wanted.prompt:
        indices = np.array([i for i in indices if step.samples[i].prompt == wanted.prompt], dtype=np.int64)
    if wanted.text:
        found = _finder(wanted)
        indices = np.array(
            [i for i in indices if found(step.samples[i].output) or found(step.samples[i].prompt)],
            dtype=np.int64,
        )
    return indices


def _outcome(step: StepSamples, outcome: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if outcome == "right":
        return step.group_low >= RIGHT_FROM
    if outcome == "wrong":
        return step.group_high < RIGHT_FROM
    if outcome == "mixed":
        return (step.group_low < RIGHT_FROM) & (step.group_high >= RIGHT_FROM)
    raise SampleError(f"unknown outcome {outcome!r}; known: right, wrong, mixed")


def _finder(wanted: Filter) -> Callable[[str], bool]:
    if not wanted.is_regex:
        low = wanted.text.lower()
        return lambda text: low in text.lower()
    try:
        pattern = regex.compile(wanted.text, regex.IGNORECASE)
    except regex.error as error:
        raise SampleError(f"not a regular expression: {error}") from error

    def found(text: str) -> bool:
        try:
            return pattern.search(text, timeout=PATTERN_SECONDS) is not None
        except TimeoutError as error:
            raise SampleError("this pattern takes too long on these texts; make it simpler") from error

    return found


def whole_file(path: Path) -> bytes:
    """The bytes of a dump.

    Raises:
        SampleError: larger than a step's dump can sensibly be; opening it would take the host's memory.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise SampleError(
            f"{path.name} has {size >> 20} MB; the panel opens dumps up to {MAX_FILE_BYTES >> 20} MB"
        )
    return path.read_bytes()


class SampleCache:
    """Steps read lately, by file and time of change, up to ``_CACHE_BYTES`` of file size."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, float, int], StepSamples] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path) -> StepSamples:
        """The samples of a file.

        Raises:
            SampleError: it cannot be read.
        """
        try:
            stat = path.stat()
            key = (str(path), stat.st_mtime, stat.st_size)
            with self._lock:
                if key in self._held:
                    self._held.move_to_end(key)
                    return self._held[key]
            step = read_samples(whole_file(path))
        except OSError as error:
            raise SampleError(f"{path.name} cannot be read: {error.strerror or error}") from error
        with self._lock:
            self._held[key] = step
            while len(self._held) > 1 and sum(item.size for item in self._held.values()) > _CACHE_BYTES:
                self._held.popitem(last=False)
        return step
