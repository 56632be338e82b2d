"""One line of the doctor's report, and its rendering."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

OK, WARNING, ERROR = "ok", "warning", "error"


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and what to do about it ("" when nothing)."""

    section: str
    name: str
    status: str
    detail: str
    fix: str = ""


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """How many findings there are of each status."""
    return {status: sum(finding.status == status for finding in findings) for status in (OK, WARNING, ERROR)}


def as_json(findings: Sequence[Finding]) -> str:
    """The report for programs: {"findings": [...], "counts": {...}}."""
    report = {"findings": [asdict(finding) for finding in findings], "counts": counts(findings)}
    return json.dumps(report, indent=2, ensure_ascii=False)


def as_text(findings: Sequence[Finding]) -> str:
    """The report for people without a terminal: one line each, the fix on a line of its own."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines: list[str] = []
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section] if lines else [section]
        lines.append(f"  {finding.status:<7}  {finding.name:<{width}}  {finding.detail}".rstrip())
        if finding.fix:
            lines.append(f"  {'':<7}  {'':<{width}}  -> {finding.fix}")
    return "\n".join([*lines, "", summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """The last line of the report."""
    number = counts(findings)
    return f"{number[OK]} ok, {number[WARNING]} warnings, {number[ERROR]} errors"


def show(findings: Sequence[Finding]) -> None:
    """Print the report: a coloured table on a terminal when rich can be imported, plain text otherwise."""
    if not (sys.stdout.isatty() or os.environ.get("FORCE_COLOR")):
        print(as_text(findings))
        return
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print(as_text(findings))
        return
    colours = {OK: "green", WARNING: "yellow", ERROR: "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            table.add_row("", Text(section, style="bold"), "")
        detail = Text(finding.detail)
        if finding.fix:
            detail.append(f"\n-> {finding.fix}", style="cyan")
        table.add_row(Text(finding.status, style=colours[finding.status]), finding.name, detail)
    console = Console()
    console.print(table)
    console.print(summary(findings))
