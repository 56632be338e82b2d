"""``--check``: read everything under a folder once and say what is there and what looks wrong."""

from __future__ import annotations

import sys
from pathlib import Path

from monitor.api import PanelApi
from monitor.metrics_collector import Collector
from monitor.settings import Settings

_MARK = {"bad": "BAD ", "warn": "WARN", "info": "note"}


def report(root: Path, config: Settings, lang: str, now: float) -> int:
    """Print the report. Returns 0 when nothing is worse than a note, 1 otherwise, 2 when there is no run."""
    if not root.exists():
        print(f"monitor: {root}: no such file or folder", file=sys.stderr)
        return 2
    collector = Collector(root, cache=config.index_cache)
    collector.load_all()
    api = PanelApi(collector, config, lang)
    for note in collector.notes:
        print(f"note  {note}")
    if not collector.runs():
        print(f"monitor: {root}: no verl log found", file=sys.stderr)
        return 2
    worst = 0
    for run in collector.runs():
        entry = api.entry(run, now)
        total = f"/{entry['total']}" if entry["total"] else ""
        sources = ", ".join(entry["sources"]) or "no log"
        print(
            f"{run.id}: {entry['method'] or '?'} {entry['state']}, step {entry['step']}{total}, "
            f"{entry['metrics']} metrics from {sources}, attempts {entry['attempts']}"
        )
        if entry["validation"]:
            best = f"best {entry['best']:.6g} at step {entry['best_step']}"
            print(f"      {entry['validation']} = {entry['last']:.6g} ({best})")
        for seen in api.observations(run, lang):
            print(f"{_MARK.get(seen['severity'], 'note')}  {seen['text']}")
            if seen["advice"]:
                print(f"      {seen['advice']}")
            if seen["severity"] in ("bad", "warn"):
                worst = 1
    return worst
