"""The one screen: what will run, what it costs, what is wrong. With colours on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.preflight.cost import Cost
from common.preflight.finding import ERROR, NOTE, WARNING
from common.preflight.report import Report

_GIB = 1024**3
_COLOURS = {ERROR: "bold red", WARNING: "yellow", NOTE: "cyan"}


def show(report: Report, stream: TextIO) -> None:
    """Write the report to *stream*."""
    terminal = stream.isatty() or bool(os.environ.get("FORCE_COLOR"))
    if not terminal:
        stream.write(as_text(report))
        stream.flush()
        return
    console = Console(file=stream, force_terminal=True, highlight=False)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in [*report.what.items(), *costs(report.cost)]:
        table.add_row(name, Text(value))
    console.rule("preflight")
    console.print(table)
    for finding in report.findings:
        line = Text(f"{finding.severity}: ", style=_COLOURS[finding.severity])
        console.print(line.append(finding.text, style="default"), soft_wrap=True)
    console.rule(verdict(report), style="red" if report.errors else "green")


def as_text(report: Report) -> str:
    """The same for logs and pipes: one line each."""
    lines = [f"{name:<10} {value}" for name, value in [*report.what.items(), *costs(report.cost)]]
    lines += [f"{finding.severity}: {finding.text}" for finding in report.findings]
    return "\n".join([*lines, f"preflight  {verdict(report)}", ""])


def verdict(report: Report) -> str:
    """The last line."""
    counts = [
        sum(finding.severity == severity for finding in report.findings) for severity in (ERROR, WARNING)
    ]
    words = [
        f"{n} {name}{'s' if n > 1 else ''}" for n, name in zip(counts, (ERROR, WARNING), strict=True) if n
    ]
    return ", ".join(words) + (": nothing was started" if counts[0] else "") if words else "all well"


def costs(cost: Cost | None) -> list[tuple[str, str]]:
    """Memory, disk and time as rows of the table."""
    if cost is None:
        return []
    rows = []
    if cost.phases:
        on_gpu = any(gpu for _, gpu, _, _ in cost.phases)
        where, most = "a GPU" if on_gpu else "host", max(host for _, _, host, _ in cost.phases)
        parts = ", ".join(
            f"{name} {(gpu if on_gpu else host) / _GIB:.1f}" for name, gpu, host, _ in cost.phases
        )
        host = f"; host at most {most / _GIB:.1f} GiB" if on_gpu else ""
        rows.append(("memory", f"{where}, GiB by phase (estimated): {parts}{host}"))
    if cost.parameters:
        rows.append(
            ("weights", f"{cost.parameters / 1e6:,.0f} M, {cost.trainable / 1e6:,.1f} M of them learn")
        )
    if cost.checkpoints and cost.checkpoint:
        size = cost.checkpoint / _GIB
        rows.append(
            (
                "disk",
                f"up to {cost.checkpoints} checkpoints x {size:.1f} GiB, {cost.disk_free / _GIB:.1f} GiB free",
            )
        )
    if cost.seconds_per_step:
        rows.append(
            ("time", f"{cost.seconds_per_step:.1f} s a step in run {cost.like}, which had the same settings")
        )
    return rows
