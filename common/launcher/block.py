"""The config block at the top of a ``train.sh``, read as data.

A knob is one line, ``NAME="${NAME:-default}"  # meaning, unit, advice``; a comment ``# == Title ==``
starts a section; the block ends at the line that contains ``end config``. A meaning that starts with
``a | b | c`` lists the allowed values.

Standard library only: ``--help`` must work before any environment exists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

END = "end config"
_KNOB = re.compile(r"^([A-Z][A-Z0-9_]*)=(\S.*|\"\")$")
_WITH_DEFAULT = re.compile(r'^"\$\{([A-Z0-9_]+):?-(.*)\}"\s*(?:#\s*(.*))?$')
_PLAIN = re.compile(r"^(\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s#]*)\s*(?:#\s*(.*))?$")
_SECTION = re.compile(r"^#\s*==\s*(.+?)\s*==\s*$")
_CHOICES = re.compile(r"^([\w.+-]+(?: \| [\w.+-]+)+)")


@dataclass(frozen=True)
class Knob:
    """One line of the block."""

    name: str
    default: str
    help: str
    section: str

    @property
    def choices(self) -> list[str]:
        """Allowed values, empty when anything goes."""
        found = _CHOICES.match(self.help)
        return found.group(1).split(" | ") if found else []

    @property
    def kind(self) -> str:
        """``bool``, ``int``, ``ints``, ``float`` or ``str``, after the default (and the help: `comma-separated`)."""
        if self.default in ("true", "false"):
            return "bool"
        if re.fullmatch(r"-?\d+", self.default):
            return "ints" if "comma-separated" in self.help else "int"
        if re.fullmatch(r"-?(\d+\.\d*|\.\d+|\d+(\.\d*)?[eE][-+]?\d+)", self.default):
            return "float"
        return "str"


def read_block(script: Path) -> list[Knob]:
    """Parse the knobs of *script*, in their order.

    Raises:
        ValueError: a line that looks like a knob but is not written like one, or no end marker.
    """
    knobs: list[Knob] = []
    section = ""
    for number, line in enumerate(script.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("#") and END in line:
            return knobs
        title = _SECTION.match(line)
        if title:
            section = title.group(1)
            continue
        assigned = _KNOB.match(line)
        if not assigned:
            continue
        name, rest = assigned.groups()
        with_default = _WITH_DEFAULT.match(rest)
        plain = _PLAIN.match(rest)
        if with_default and with_default.group(1) == name:
            default, text = with_default.group(2), with_default.group(3)
        elif plain:
            default, text = plain.group(1).strip("\"'"), plain.group(2)
        else:
            raise ValueError(f'{script}:{number}: write knobs as NAME="${{NAME:-value}}"  # meaning')
        knobs.append(Knob(name, default.replace('\\"', '"'), text or "", section))
    raise ValueError(f"{script}: the config block has no line '# ... {END} ...'")
