"""The environment on disk: its stamp, the sets of packages, and the pins of the lock files."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
STAMP_NAME = "verl_training_env.txt"
PYTHONS = ((3, 10), (3, 11), (3, 12))
"""The (major, minor) versions of Python for which the lock files are resolved."""


@dataclass(frozen=True)
class Stamp:
    """What setup_env.sh installed; common/env.sh reads the same file."""

    digest: str
    kind: str
    engine: str
    dev: bool
    python: str

    def write(self, path: Path) -> None:
        """Write the stamp whole or not at all (a kill in mid-write leaves the old file)."""
        lines = [f"digest={self.digest}", f"kind={self.kind}", f"engine={self.engine}"]
        lines += [f"dev={int(self.dev)}", f"python={self.python}"]
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.write_text("\n".join(lines) + "\n", encoding="utf-8")
        fresh.replace(path)


def stamp_path(prefix: Path) -> Path:
    """Where a finished environment carries its stamp."""
    return prefix / STAMP_NAME


def partial_path(prefix: Path) -> Path:
    """The stamp's name while an installation is under way, or after one that failed."""
    return prefix / f"{STAMP_NAME.removesuffix('.txt')}.partial"


def read_stamp(path: Path) -> Stamp | None:
    """The stamp in a file; None when there is none or when it is not whole."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    try:
        dev = values["dev"] == "1"
        return Stamp(values["digest"], values["kind"], values["engine"], dev, values["python"])
    except KeyError:
        return None


def lock_files(kind: str, engine: str, dev: bool) -> list[Path]:
    """The lock files of a set, in the order in which they are installed."""
    name = "cpu" if kind == "cpu" else f"gpu-{engine}"
    names = [name, "dev"] if dev else [name]
    return [REQUIREMENTS / f"lock-{each}.txt" for each in names]


def allowed_deviations(kind: str, engine: str) -> set[str]:
    """Normalised names whose requirements the set overrides or leaves out on purpose."""
    suffix = "cpu" if kind == "cpu" else f"gpu-{engine}"
    files = [REQUIREMENTS / "excludes.txt"]
    files += [REQUIREMENTS / f"{part}-{suffix}.txt" for part in ("excludes", "overrides")]
    return {name for file in files if file.exists() for name, _, _ in requirement_lines(file)}


def normalise(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return name.lower().replace("_", "-").replace(".", "-")


def requirement_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Name, version ("" when none is pinned) and marker ("" when none) of each line of a requirements file.

    Reads the plain `name[extras]==version ; marker` lines of this repository's own files, options left out:
    it has to work in an environment where nothing is installed.
    """
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.split("#", 1)[0].strip()
        if not text or text.startswith("-"):
            continue
        requirement, _, marker = (part.strip() for part in text.partition(";"))
        name, _, version = (part.strip() for part in requirement.partition("=="))
        yield normalise(name.split("[", 1)[0]), version, marker


def packaging_module(name: str) -> ModuleType | None:
    """packaging.<name>, or the copy inside pip; None where neither is installed."""
    for parent in ("packaging", "pip._vendor.packaging"):
        try:
            return importlib.import_module(f"{parent}.{name}")
        except ImportError:
            continue
    return None


def pins(paths: list[Path]) -> dict[str, str]:
    """The version that each distribution should have here, from lock files: {normalised name: version}."""
    markers = packaging_module("markers")
    wanted: dict[str, str] = {}
    for path in paths:
        for name, version, marker in requirement_lines(path):
            # Without packaging only lines that hold on every platform can be judged.
            if not marker or (markers is not None and markers.Marker(marker).evaluate()):
                wanted[name] = version
    return wanted


def installed(prefix: Path) -> dict[str, list[str]]:
    """Versions of each distribution in an environment: {normalised name: [version]}.

    Read off the folder names, which takes milliseconds; two versions of one name are a broken installation.
    """
    found: dict[str, list[str]] = {}
    for folder in prefix.glob("lib/python3*/site-packages/*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").partition("-")
        found.setdefault(normalise(name), []).append(version)
    return found


def uncompiled(prefix: Path) -> list[str]:
    """Big packages of an environment whose bytecode is not on disk.

    uv writes none, and where PYTHONDONTWRITEBYTECODE is set (many container images) Python writes none:
    then each of the ten processes of a run compiles torch, vllm and transformers anew, for minutes.
    """
    found = []
    for name in ("torch", "transformers", "verl", "vllm", "ray"):
        for source in prefix.glob(f"lib/python3*/site-packages/{name}/__init__.py"):
            if not Path(importlib.util.cache_from_source(str(source))).exists():
                found.append(name)
    return found


def python_version() -> str:
    """This interpreter's version, such as 3.11.7."""
    return ".".join(str(part) for part in sys.version_info[:3])
