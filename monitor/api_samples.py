"""The server functions of the Samples tab: pages of grouped answers, whole texts, one prompt over the steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from monitor import samples
from monitor.metrics_collector import Collector
from monitor.run import Run
from monitor.samples import Filter, StepSamples
from monitor.settings import Settings

Request = dict[str, Any]
Reply = dict[str, Any]


class ApiError(ValueError):
    """A request that cannot be answered; the text is shown in the page."""


class SampleApi:
    """Reads dumps of the collector's runs on demand."""

    def __init__(self, collector: Collector, settings: Settings) -> None:
        self.collector = collector
        self.settings = settings
        self.cache = samples.SampleCache()

    def _one(self, request: Request) -> Run:
        run = self.collector.run(str(request.get("run", "")))
        if run is None:
            raise ApiError("this run is not there any more")
        return run

    def _kinds(self, run: Run) -> list[str]:
        kinds = ["rollouts"] if run.samples.steps() else []
        kinds += ["validation"] if run.validation.steps() else []
        return kinds + (["results"] if run.files.results else [])

    def _step(self, run: Run, kind: str, wanted: Any) -> tuple[list[int], int, StepSamples]:
        if kind == "results":
            steps = list(range(len(run.files.results)))
            step = wanted if isinstance(wanted, int) and wanted in steps else 0
            return steps, step, self.cache.read(self._safe(run.files.results[step]))
        stats = run.validation if kind == "validation" else run.samples
        steps = stats.steps()
        if not steps:
            raise ApiError(f"this run has no {kind}")
        step = (
            steps[-1] if not isinstance(wanted, (int, float)) else min(steps, key=lambda s: abs(s - wanted))
        )
        read = self.cache.read(self._safe(stats.file(step)))
        return steps, step, stats.joined(step, read)

    def _safe(self, path: Path) -> Path:
        if not self.collector.scanner.inside(path) and path != self.collector.root:
            raise ApiError("this file lies outside the log folder")
        return path

    def page(self, request: Request) -> Reply:
        """One page of one step's samples, grouped by prompt, after the filters."""
        run = self._one(request)
        kinds = self._kinds(run)
        if not kinds:
            return {"kinds": [], "steps": [], "groups": [], "matched": 0, "total": 0}
        kind = str(request.get("kind"))
        kind = kind if kind in kinds else kinds[0]
        steps, step, read = self._step(run, kind, request.get("step"))
        wanted = _filter(request.get("filter"))
        chosen = samples.matching(read, wanted)
        needle = "" if wanted.is_regex else wanted.text
        by_group: dict[int, list[int]] = {}
        for index in chosen.tolist():
            by_group.setdefault(int(read.group_of[index]), []).append(index)
        order = _ordered(read, by_group, str(request.get("sort", "")))
        size = self.settings.page_groups
        pages = max(1, -(-len(order) // size))
        page = min(max(0, int(request.get("page", 0))), pages - 1)
        advantages = read.advantages()
        groups = [
            self._group(read, g, by_group[g], advantages, needle)
            for g in order[page * size : (page + 1) * size]
        ]
        return {
            "kinds": kinds, "kind": kind, "steps": steps, "step": step, "page": page, "pages": pages,
            "total": len(read.samples), "matched": len(chosen), "group_count": len(order), "groups": groups,
            "histogram": _histogram(read.scores[chosen]), "bad_lines": read.bad_lines,
            "metrics": samples.step_metrics(read) if not request.get("page") else None,
            "results": [path.name for path in run.files.results],
        }  # fmt: skip

    def _group(
        self, read: StepSamples, group: int, members: list[int], advantages: Any, needle: str
    ) -> Reply:
        limit = self.settings.text_limit
        first = read.samples[members[0]]
        answers = []
        for index in members[:64]:
            sample = read.samples[index]
            answers.append(
                {
                    "i": index,
                    "text": _excerpt(sample.output, limit, needle),
                    "length": len(sample.output),
                    "score": _finite(sample.score),
                    "final": _finite(sample.final),
                    "advantage": float(advantages[index]),
                    "parts": {key: cell(value) for key, value in list(sample.parts.items())[:24]},
                    "truncated": sample.truncated,
                }
            )
        return {
            "prompt": first.prompt[-limit:],
            "prompt_length": len(first.prompt),
            "first": members[0],
            "truth": first.truth[:limit],
            "mean": float(read.group_mean[group]),
            "std": float(read.group_std[group]),
            "size": int(read.group_size[group]),
            "answers": answers,
        }

    def sample_text(self, request: Request) -> Reply:
        """The whole prompt and answer of one sample."""
        run = self._one(request)
        _, _, read = self._step(run, str(request.get("kind")), request.get("step"))
        index = int(request.get("i", -1))
        if not 0 <= index < len(read.samples):
            raise ApiError("this sample is not there any more; the file was rewritten")
        sample = read.samples[index]
        return {"prompt": sample.prompt, "text": sample.output, "truth": sample.truth}

    def history(self, request: Request) -> Reply:
        """The same prompt across steps: mean reward and number of answers at each."""
        run = self._one(request)
        kind = str(request.get("kind"))
        prompt = self.sample_text(request)["prompt"]
        stats = run.validation if kind == "validation" else run.samples
        rows = stats.history(prompt)[-2000:] if kind != "results" else []
        return {"rows": [{"step": step, "mean": mean, "count": count} for step, mean, count in rows]}


def cell(value: Any) -> str:
    """A value as the page shows it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _excerpt(text: str, limit: int, needle: str) -> str:
    """The beginning of a text; where a searched word lies beyond it, the part around that word."""
    at = text.lower().find(needle.lower()) if needle else -1
    if at + len(needle) <= limit:
        return text[:limit]
    begin = max(0, at - limit // 4)
    return "… " + text[begin : begin + limit]


def _filter(raw: Any) -> Filter:
    given = raw if isinstance(raw, dict) else {}

    def bound(name: str) -> float | None:
        value = given.get(name)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    shortest, longest = bound("shortest"), bound("longest")
    return Filter(
        low=bound("low"),
        high=bound("high"),
        shortest=None if shortest is None else int(shortest),
        longest=None if longest is None else int(longest),
        text=str(given.get("text") or "")[:1000],
        is_regex=bool(given.get("regex")),
        outcome=str(given.get("outcome") or ""),
        truncated=bool(given.get("truncated")),
        prompt=str(given.get("prompt") or ""),
    )


def _ordered(read: StepSamples, groups: dict[int, list[int]], sort: str) -> list[int]:
    keys: dict[str, Callable[[int], Any]] = {
        "best": lambda g: -read.group_mean[g],
        "worst": lambda g: read.group_mean[g],
        "spread": lambda g: -read.group_std[g],
        "longest": lambda g: -max(read.lengths[i] for i in groups[g]),
    }
    return sorted(groups, key=keys[sort]) if sort in keys else list(groups)


def _histogram(scores: Any) -> Reply:
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return {"edges": [], "counts": [], "missing": len(scores)}
    counts, edges = np.histogram(finite, bins=20)
    return {"edges": edges.tolist(), "counts": counts.tolist(), "missing": len(scores) - len(finite)}
