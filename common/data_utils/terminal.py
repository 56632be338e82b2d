"""What people see in a terminal: a progress bar, and the summary of a quality report."""

from __future__ import annotations

import sys
import time

from common.data_utils.findings import Finding, Histogram, Report

_BLOCKS = " ▁▂▃▄▅▆▇█"
_COLOURS = {"error": "31", "warning": "33", "info": "36"}


class Bar:
    """A one-line progress bar on stderr, redrawn at most ten times a second."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def update(self, done: int, total: int) -> None:
        """Draw; `done` and `total` in bytes."""
        now = time.monotonic()
        if now - self._last < 0.1 and done < total:
            return
        self._last = now
        share = done / total if total else 1.0
        filled = int(share * 30)
        rest = (now - self._start) * (1 - share) / share if share else 0.0
        end = "\n" if done >= total else ""
        line = f"\r[{'#' * filled}{'.' * (30 - filled)}] {share:4.0%} {rest:4.0f} s left"
        print(line, end=end, file=sys.stderr, flush=True)


def paint(text: str, code: str, colour: bool) -> str:
    """ANSI colour around text, if wanted."""
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text


def _finding(finding: Finding, colour: bool) -> list[str]:
    head = paint(f"{finding.severity:8}", _COLOURS[finding.severity], colour)
    rows = "1 row" if finding.count == 1 else f"{finding.count} rows"
    lines = [f"{head} {finding.code}: {finding.message} ({rows})"]
    if finding.rows:
        lines.append(f"         {finding.where()}")
    lines += [f"         e.g. {example}" for example in finding.examples]
    return lines


def _histogram(item: Histogram) -> str:
    top = max(item.counts)
    bars = "".join(_BLOCKS[-(-count * 8 // top)] for count in item.counts)
    marks = ", ".join(f"{name} {value}" for name, value in item.percentiles.items())
    limit = f", limit {item.limit}" if item.limit is not None else ""
    return f"{item.name}: {item.edges[0]} {bars} {item.longest} (mean {item.mean:.0f}, {marks}{limit})"


def lines_of(report: Report, colour: bool = False) -> list[str]:
    """The report as lines for a terminal."""
    lines = []
    for source in report.sources:
        counts = f"{source['rows_in']} rows, {source['rows_ok']} usable"
        lines.append(f"{source['role']}: {source['name']}: {counts}; {source['reason']}")
        lines += [f"  note: {note}" for note in source["notes"]]
    lines += [_histogram(item) for item in report.histograms]
    languages = ", ".join(f"{name} {share:.1%}" for name, share in report.stats.get("languages", {}).items())
    if languages:
        lines.append(f"languages: {languages}")
    pairs = report.stats.get("preference_lengths")
    if pairs:
        lines.append(
            f"chosen is longer in {pairs['chosen_longer']:.1%} of pairs; mean characters "
            f"{pairs['mean_chosen_chars']:.0f} chosen, {pairs['mean_rejected_chars']:.0f} rejected"
        )
    for finding in report.findings:
        lines += _finding(finding, colour)
    errors = sum(finding.severity == "error" for finding in report.findings)
    verdict = "training may start" if report.ok else f"training must not start: {errors} kinds of errors"
    lines.append(
        paint(verdict, "32" if report.ok else "31", colour) + f" (checked in {report.seconds:.1f} s)"
    )
    return lines
