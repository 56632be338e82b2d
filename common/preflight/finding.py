"""What the preflight says: one sentence, how bad it is, and the knob that mends it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        severity: ERROR stops the launch; WARNING and NOTE do not.
        text: one sentence with the arithmetic and what to do.
        knob: the knob or verl key that it is about, "" for none.
    """

    severity: str
    text: str
    knob: str = ""


def error(text: str, knob: str = "") -> Finding:
    """A finding that stops the launch."""
    return Finding(ERROR, text, knob)


def warning(text: str, knob: str = "") -> Finding:
    """A finding that the user should know of; the run goes on."""
    return Finding(WARNING, text, knob)


def note(text: str, knob: str = "") -> Finding:
    """Something worth saying."""
    return Finding(NOTE, text, knob)


def knob_of(line: str) -> str:
    """The knob that a sentence of the launcher's begins with."""
    found = re.match(r"[A-Z][A-Z_]+", line)
    return found.group() if found else ""


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, each finding once."""
    return sorted(dict.fromkeys(findings), key=lambda finding: SEVERITIES.index(finding.severity))


def forced(findings: Iterable[Finding]) -> list[Finding]:
    """``--force``: every error becomes a warning that says so."""
    return [
        replace(f, severity=WARNING, text=f"{f.text} (--force: going on)") if f.severity == ERROR else f
        for f in findings
    ]
