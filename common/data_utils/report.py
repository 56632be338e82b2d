"""The quality report as one HTML file: no scripts, no network, plots as inline SVG."""

from __future__ import annotations

from html import escape
from pathlib import Path

from common.data_utils.atomic import write_text
from common.data_utils.findings import Histogram, Report

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de; --bar: #2f6fdb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d; --bar: #6ea8fe; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
th, td:first-child { white-space: nowrap; }
.error { color: #c62828; font-weight: 600; } .warning { color: #b26a00; font-weight: 600; }
.info { color: #2f6fdb; }
.good { color: #1a7f37; font-weight: 600; } svg { width: 100%; height: auto; }
svg text { fill: var(--ink); font-size: 11px; }
rect { fill: var(--bar); } .limit { stroke: #c62828; stroke-dasharray: 4 3; } .axis { stroke: var(--line); }
details summary { cursor: pointer; }
"""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 200, 50, 24


def _plot(item: Histogram) -> str:
    """A bar chart of a histogram, the limit as a dashed line."""
    top, high = max(item.counts), item.edges[-1]
    low, span = item.edges[0], max(1, high - item.edges[0])
    if item.limit is not None:
        span = max(span, item.limit - low)
    wide = _WIDTH - _LEFT - 10
    tall = _HEIGHT - _BOTTOM - 10
    base = _HEIGHT - _BOTTOM
    parts = []
    for start, end, count in zip(item.edges[:-1], item.edges[1:], item.counts, strict=True):
        left = _LEFT + wide * (start - low) / span
        width = max(0.5, wide * (end - start) / span - 1)
        height = tall * count / top
        tip = f"<title>{start} to {end - 1}: {count} rows</title>"
        place = f'x="{left:.1f}" y="{base - height:.1f}" width="{width:.1f}" height="{height:.1f}"'
        parts.append(f"<rect {place}>{tip}</rect>")
    if item.limit is not None and item.limit >= low:
        at = _LEFT + wide * (item.limit - low) / span
        parts.append(f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="10" y2="{base}"/>')
        parts.append(f'<text x="{min(at, _WIDTH - 70):.1f}" y="9">limit {item.limit}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{base}" y2="{base}"/>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{low}</text>')
    parts.append(f'<text x="{_WIDTH - 10}" y="{_HEIGHT - 6}" text-anchor="end">{low + span}</text>')
    parts.append(f'<text x="{_LEFT - 6}" y="18" text-anchor="end">{top}</text>')
    marks = ", ".join(f"{name} {value}" for name, value in item.percentiles.items())
    caption = f"mean {item.mean:.1f}, longest {item.longest}, {marks}"
    head = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(item.name)}"'
    svg = f"<svg {head}>{''.join(parts)}</svg>"
    return f"<h3>{escape(item.name)}</h3>{svg}<p>{escape(caption)}</p>"


def _table(head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _findings(report: Report) -> str:
    if not report.findings:
        return "<p>No findings.</p>"
    rows = []
    for finding in report.findings:
        where = escape(finding.where())
        if finding.count > 20:
            every = ", ".join(str(place.row) for place in finding.rows)
            more = (
                ""
                if finding.count <= len(finding.rows)
                else f" (the first {len(finding.rows)} of {finding.count})"
            )
            where += f"<details><summary>all rows{more}</summary>{escape(every)}</details>"
        examples = "".join(f"<br><small>{escape(text)}</small>" for text in finding.examples)
        label = f'<span class="{finding.severity}">{finding.severity}</span>'
        rows.append(
            [label, escape(f"{finding.code}: {finding.message}") + examples, str(finding.count), where]
        )
    return _table(["severity", "finding", "rows", "where (row numbers of the source)"], rows)


def html_of(report: Report) -> str:
    """The whole page."""
    verdict = (
        ("good", "Training may start.") if report.ok else ("error", "Training must not start with this data.")
    )
    sources = [
        [escape(str(item[name])) for name in ("role", "name", "rows_in", "rows_ok", "reason")]
        for item in report.sources
    ]
    notes = [f"{item['name']}: {note}" for item in report.sources for note in item["notes"]]
    languages = [[escape(name), f"{share:.1%}"] for name, share in report.stats.get("languages", {}).items()]
    columns = [
        [escape(name), escape(", ".join(f"{kind} {number}" for kind, number in kinds.items()))]
        for name, kinds in report.stats.get("columns", {}).items()
    ]
    pairs = report.stats.get("preference_lengths", {})
    parts = [
        f"<h1>Data quality: {escape(report.task)}</h1>",
        f'<p class="{verdict[0]}">{verdict[1]}</p>',
        _table(["role", "source", "rows", "usable", "format"], sources),
        "".join(f"<p>Note: {escape(note)}</p>" for note in notes),
        "<h2>Findings</h2>",
        _findings(report),
        "<h2>Lengths</h2>",
        "".join(_plot(item) for item in report.histograms),
        _table(["length of pairs", "value"], [[escape(key), str(value)] for key, value in pairs.items()])
        if pairs
        else "",
        "<h2>Languages</h2><p>By script and frequent words: a statistic, not a classifier.</p>",
        _table(["language", "share of rows"], languages),
        "<h2>Columns of the training source</h2>",
        _table(["column", "types"], columns),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>Data quality</title><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def write_html(report: Report, path: Path) -> None:
    """Write the page; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html_of(report))
