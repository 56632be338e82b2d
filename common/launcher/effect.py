"""Did what the launcher passed arrive? Compares verl's own print of its config with the overrides it was given.

    python -m common.launcher.effect RUN_FOLDER

verl 0.9.1 prints the config that it will train with: `main_ppo.py` in TaskRunnerV1.run (pprint, resolved),
`sft_trainer.py` at the end of SFTTrainer.__init__ (one line, interpolations unresolved), which DPO inherits. Both
come before the first step.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.failures import console
from common.launcher import runs
from common.launcher.errors import UserError, exit_with
from common.launcher.hydra_words import key_of

ROOT = Path(__file__).resolve().parents[2]
_BEGIN = ("{'actor_rollout_ref':", "{'model':")
# What a line of pprint's can begin with (Ray may break it between any two words); a warning in between cannot.
_GOES_ON = re.compile(r"""^\s*(?:['"\[{()\]}:,\d-]|None\b|True\b|False\b|inf\b|nan\b)""")
_STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_NUMBER = re.compile(_STRING.pattern + r"|\b(inf|nan)\b")
# Hydra's own settings and choices of a group's file are in no config that verl sees.
_GROUP = re.compile(r"^hydra\b|[/@]")
# ${oc.env:HOME}, ${now:%H}: another process, another time, another value.
_RESOLVER = re.compile(r"\$\{[\w.]+:")
_ASSIGNED = re.compile(r'"\+*(?:\$\{?\w+\}?\.)?(?P<key>[\w.]+)=(?P<value>.*)')
_VARIABLE = re.compile(r"\$\{?([A-Z][A-Z0-9_]+)")


@dataclass(frozen=True)
class Mismatch:
    """One override that did not arrive; `knob` is the launcher's name for it, "" for a key=value of verl's own."""

    key: str
    wanted: Any
    got: Any
    knob: str = ""

    def __str__(self) -> str:
        name = f"{self.knob} ({self.key})" if self.knob else self.key
        return f"{name} did not arrive: wanted {self.wanted!r}, verl trains with {self.got!r}"


class _Absent:
    def __repr__(self) -> str:
        return "nothing (no such key)"


ABSENT = _Absent()


def printed_config(text: str) -> dict[str, Any] | None:
    """The config in a console log as verl printed it; None while it is not there (or not whole) yet.

    A log of several rounds holds several: the newest counts.
    """
    found: dict[str, Any] | None = None
    lines = console.lines_of(text, cut=1 << 20)
    for at, line in enumerate(lines):
        if line.text.startswith(_BEGIN):
            found = _literal(_block(lines, at)) or found
    return found


def _block(lines: list[console.Line], start: int) -> str:
    """The lines of the config that begins at *start*, those of other processes and of warnings left out."""
    first, parts, depth = lines[start], [], 0
    for line in lines[start:]:
        if line.source != first.source or not _GOES_ON.match(line.text):
            continue
        parts.append(line.text)
        bare = _STRING.sub("", line.text)
        depth += bare.count("{") - bare.count("}")
        if depth <= 0 and _literal("\n".join(parts)):
            break
    return "\n".join(parts)


def _literal(text: str) -> dict[str, Any] | None:
    try:
        value = ast.literal_eval(_NUMBER.sub(lambda match: "1e999" if match[1] else match[0], text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def mismatches(
    words: Iterable[str], config: dict[str, Any], knobs: dict[str, str] | None = None
) -> list[Mismatch]:
    """Overrides of a verl command that are not in the config it printed.

    Args:
        words: the command, or just its overrides.
        config: from `printed_config`.
        knobs: `{verl key: knob}`, see `knobs_of`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    words = list(words)
    if "--config-name" in words:
        words = words[words.index("--config-name") + 2 :]
    # In Hydra a later override of a key wins.
    last = {override.key_or_group: override for override in OverridesParser.create().parse_overrides(words)}
    known = OmegaConf.create(config)
    found = []
    for key, override in last.items():
        if _GROUP.search(key):
            continue
        if _RESOLVER.search(override.input_line or ""):
            continue
        try:
            wanted = ABSENT if override.is_delete() else _wanted(key, override.value(), config)
            got = OmegaConf.select(known, key, default=ABSENT)
            got = _plain(OmegaConf.to_container(got, resolve=True)) if OmegaConf.is_config(got) else got
        except OmegaConfBaseException:
            continue  # what has no value here cannot be compared; verl itself did resolve it
        chosen = isinstance(wanted, str) and isinstance(got, dict)  # engine=megatron: a group's file
        if not chosen and not _same(wanted, got):
            found.append(Mismatch(key, wanted, got, (knobs or {}).get(key, "")))
    return found


def _wanted(key: str, value: Any, config: dict[str, Any]) -> Any:
    """*value* in plain words; one that refers to other keys with what *config* holds there."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError

    try:
        return _plain(value)
    except InterpolationResolutionError:
        placed = OmegaConf.create(config)
        OmegaConf.update(placed, key, value, merge=False, force_add=True)
        found = OmegaConf.select(placed, key)
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


def _plain(value: Any) -> Any:
    """*value* as OmegaConf holds it: quoted strings as strings, escaped interpolations as text."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]  # type: ignore[index, call-overload]


def _same(wanted: Any, got: Any) -> bool:
    if isinstance(wanted, dict) and isinstance(got, dict):
        # A mapping is merged into what the config already holds.
        return all(_same(value, got.get(key, ABSENT)) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(got, list):
        return len(wanted) == len(got) and all(map(_same, wanted, got))
    numbers = (int, float)
    if isinstance(wanted, bool) is not isinstance(got, bool):
        return False
    if isinstance(wanted, numbers) and isinstance(got, numbers):
        return float(wanted) == float(got)
    if wanted is ABSENT or got is ABSENT:
        return wanted in (ABSENT, None) and got in (ABSENT, None)
    return str(wanted) == str(got) if isinstance(wanted, str) or isinstance(got, str) else wanted == got


def knobs_of(method: str, knobs: Iterable[str]) -> dict[str, str]:
    """`{verl key: knob}` for the keys that the launchers set from a knob, read from their own shell files."""
    known, found = set(knobs), {}
    files = [ROOT / "common/rl.sh", ROOT / "common/engine.sh", *sorted((ROOT / method).glob("*.sh"))]
    for path in files:
        text = path.read_text(encoding="utf-8")
        aliases = dict(re.findall(r"(?:local |\s)(\w+)=((?:actor_rollout_ref|reward)[\w.]*)", text))
        for line in text.splitlines():
            match = _ASSIGNED.search(line)
            names = [name for name in _VARIABLE.findall(match["value"]) if name in known] if match else []
            if match and names:
                alias = re.search(r'"\+*\$\{?(\w+)\}?\.', line)
                key = f"{aliases.get(alias[1], alias[1])}.{match['key']}" if alias else match["key"]
                found[key] = names[0]
    return found


def command_of(record: dict[str, Any]) -> list[str]:
    """The verl command whose config the newest attempt prints: of a self-play round its own."""
    own = (record.get("attempts") or [{}])[-1].get("command")
    command = list(own or record.get("command") or [])
    return [] if own is None and "common.launcher.rounds" in command else command


def check(folder: Path, text: str | None = None) -> list[Mismatch] | None:
    """`mismatches` of a run's newest attempt; None while verl has not printed its config.

    Args:
        text: of the console log, where the caller has it already.

    Raises:
        UserError: no run folder, or a command that Hydra cannot read.
    """
    record = runs.read(folder)
    if text is None:
        try:
            text = console.read(folder / record["attempts"][-1]["console"])
        except (OSError, LookupError):
            return None
    config = printed_config(text)
    words = command_of(record)
    if config is None or "--config-name" not in words:
        return None
    from hydra.errors import HydraException

    try:
        users = {key_of(word) for word in record.get("extra") or ()}
        knobs = {
            key: knob for key, knob in knobs_of(record["method"], record["knobs"]).items() if key not in users
        }
        return mismatches(words, config, knobs)
    except HydraException as error:
        raise UserError(f"the overrides cannot be read: {error}") from None


def main() -> None:
    """Entry point of ``python -m common.launcher.effect``."""
    import sys

    if len(sys.argv) != 2:
        raise UserError("usage: python -m common.launcher.effect RUN_FOLDER")
    found = check(Path(sys.argv[1]))
    if found is None:
        raise UserError(f"{sys.argv[1]}: verl has printed no config (yet)")
    for mismatch in found:
        print(mismatch)
    print(f"{len(found)} of the overrides did not arrive" if found else "every override arrived")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    exit_with(main)
