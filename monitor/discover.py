"""Find runs under the log folder: our run folders, plain verl output, or a single old log.

Nothing outside the folder is ever opened: a link that leads out of it is passed over and named in ``Found``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from monitor import log_parser
from monitor.tail import read_end, read_head

MAX_DEPTH = 8
MAX_ENTRIES = 50_000
_SKIP_FOLDERS = re.compile(
    r"^(\..*|__pycache__|node_modules|wandb|checkpoints?|global_step_\d+|huggingface)$"
)
_ATTEMPT = re.compile(r"^(metrics|console|attempt)[-_.]?(\d+)\b")
_CONSOLE_SUFFIXES = {".log", ".txt", ".out", ".stdout"}
_SAMPLE_FILE = re.compile(r"^\d+\.jsonl$")
_GPU_FILE = "gpu.jsonl"
_JUDGE_FILE = "judge-metrics.jsonl"


@dataclass
class RunFiles:
    """The files of one run. ``metrics`` and ``consoles`` are (attempt number, path), lowest attempt first."""

    id: str
    folder: Path
    title: str
    manifest: Path | None = None
    metrics: list[tuple[int, Path]] = field(default_factory=list)
    consoles: list[tuple[int, Path]] = field(default_factory=list)
    events: list[Path] = field(default_factory=list)
    gpu: Path | None = None
    judge: Path | None = None
    rollouts: Path | None = None
    validation: Path | None = None
    parts: list[Path] = field(default_factory=list)
    results: list[Path] = field(default_factory=list)

    def all_logs(self) -> list[Path]:
        """Files whose growth means that the run is alive."""
        return [path for _, path in [*self.metrics, *self.consoles]] + self.events


@dataclass
class Found:
    """What a scan saw: the runs and, in words, what it did not open and why."""

    runs: list[RunFiles]
    notes: list[str]


class Scanner:
    """Walks the log folder; remembers what each file was recognised as, so that a rescan is cheap."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._kinds: dict[Path, tuple[int, str]] = {}
        self._notes: list[str] = []
        self._entries = 0

    def inside(self, path: Path) -> bool:
        """Whether ``path``, links followed, lies under the log folder."""
        try:
            return path.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError):
            return False

    def scan(self) -> Found:
        """Look for runs now."""
        self._notes, self._entries = [], 0
        if self.root.is_file():
            return Found(self._from_files(self.root.parent, [self.root], []), self._notes)
        runs: list[RunFiles] = []
        self._walk(self.root, 0, runs)
        return Found(runs, self._notes)

    def _note(self, text: str) -> None:
        if len(self._notes) < 20:
            self._notes.append(text)

    def _list(self, folder: Path) -> tuple[list[Path], list[Path]]:
        files: list[Path] = []
        folders: list[Path] = []
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda item: item.name):
                    self._entries += 1
                    path = folder / entry.name
                    try:
                        if entry.is_symlink() and not self.inside(path):
                            self._note(
                                f"{self._name(path)}: a link that leads out of the log folder, not opened"
                            )
                        elif entry.is_dir():
                            folders.append(path)
                        elif entry.is_file():
                            files.append(path)
                    except OSError as error:
                        self._note(f"{self._name(path)}: {error.strerror}")
        except OSError as error:
            self._note(f"{self._name(folder)}: {error.strerror}")
        return files, folders

    def _name(self, path: Path) -> str:
        try:
            return path.relative_to(self.root).as_posix()
        except ValueError:
            return path.name

    def _walk(self, folder: Path, depth: int, runs: list[RunFiles]) -> None:
        if depth > MAX_DEPTH or self._entries > MAX_ENTRIES:
            self._note(
                f"{self._name(folder)}: not searched (deeper than {MAX_DEPTH} or over {MAX_ENTRIES} entries)"
            )
            return
        files, folders = self._list(folder)
        if any(path.name == "run.json" for path in files):
            runs.append(self._run_folder(folder, files, folders))
            return
        here = self._from_files(folder, files, folders)
        below: list[RunFiles] = []
        for child in folders:
            if not _SKIP_FOLDERS.match(child.name):
                self._walk(child, depth + 1, below)
        if len(here) == 1:
            below = [run for run in below if not self._adopt(here[0], run)]
        runs += here + below

    def _adopt(self, owner: RunFiles, child: RunFiles) -> bool:
        """A folder of samples or event files inside the folder of a single run belongs to that run."""
        if child.metrics or child.consoles or child.manifest or child.results:
            return False
        owner.events += child.events
        owner.rollouts = owner.rollouts or child.rollouts
        owner.validation = owner.validation or child.validation
        return True

    def _run_folder(self, folder: Path, files: list[Path], folders: list[Path]) -> RunFiles:
        run = RunFiles(self._name(folder) if folder != self.root else ".", folder, folder.name)
        run.manifest = folder / "run.json"
        self._sort_files(run, files)
        pending = [(child, 0) for child in folders if not _SKIP_FOLDERS.match(child.name)]
        while pending:
            child, depth = pending.pop(0)
            if child.name == "rollouts":
                run.rollouts = child
            elif child.name == "validation":
                run.validation = child
            elif depth < 3:
                inner_files, inner_folders = self._list(child)
                run.events += [path for path in inner_files if self._is_events(path)]
                pending += [(path, depth + 1) for path in inner_folders]
        return run

    def _sort_files(self, run: RunFiles, files: Iterable[Path]) -> None:
        for path in files:
            number = int(match.group(2)) if (match := _ATTEMPT.match(path.name)) else 1
            if path.name == _GPU_FILE:
                run.gpu = path
            elif path.name == _JUDGE_FILE:
                run.judge = path
            elif path.name.startswith("reward_parts") and path.suffix == ".jsonl":
                run.parts.append(path)
            elif self._is_events(path):
                run.events.append(path)
            elif path.name.startswith("metrics") and path.suffix == ".jsonl":
                run.metrics.append((number, path))
            elif path.name.startswith("console") and path.suffix in _CONSOLE_SUFFIXES:
                run.consoles.append((number, path))
        run.metrics.sort()
        run.consoles.sort()

    def _from_files(self, folder: Path, files: list[Path], folders: list[Path]) -> list[RunFiles]:
        """Runs made of the files of one folder without a run.json."""
        kinds = {path: self._kind(path) for path in files}
        metrics = [path for path, kind in kinds.items() if kind == "metrics"]
        consoles = [path for path, kind in kinds.items() if kind == "console"]
        events = [path for path, kind in kinds.items() if kind == "tfevents"]
        samples = [path for path, kind in kinds.items() if kind == "samples"]
        name = self._name(folder) if folder != self.root else "."
        runs: list[RunFiles] = []
        if metrics and all(_ATTEMPT.match(path.name) for path in metrics):
            run = RunFiles(name, folder, folder.name)
            self._sort_files(run, [path for path in files if kinds[path] in ("metrics", "gpu")])
            run.metrics = sorted((self._attempt(path), path) for path in metrics)
            runs.append(run)
        else:
            runs += [RunFiles(self._name(path), folder, path.stem, metrics=[(1, path)]) for path in metrics]
        for path in consoles:
            owner = next((run for run in runs if run.title == path.stem and run.metrics), None)
            if owner is None and len(runs) == 1 and runs[0].metrics:
                owner = runs[0]
            if owner is not None:
                owner.consoles.append((self._attempt(path), path))
                owner.consoles.sort()
            else:
                runs.append(RunFiles(self._name(path), folder, path.stem, consoles=[(1, path)]))
        if events:
            if len(runs) == 1:
                runs[0].events += events
            else:
                runs.append(RunFiles(name, folder, folder.name, events=events))
        if len(runs) == 1 and folder / _GPU_FILE in kinds:
            runs[0].gpu = folder / _GPU_FILE
        by_step = [path for path in samples if _SAMPLE_FILE.match(path.name)]
        if by_step:
            run = RunFiles(name, folder, folder.name)
            if "val" in folder.name.lower():
                run.validation = folder
            else:
                run.rollouts = folder
            runs.append(run)
        runs += [
            RunFiles(self._name(path), folder, f"{folder.name}/{path.stem}", results=[path])
            for path in samples
            if path not in by_step
        ]
        return runs

    @staticmethod
    def _attempt(path: Path) -> int:
        match = _ATTEMPT.match(path.name)
        return int(match.group(2)) if match else 1

    @staticmethod
    def _is_events(path: Path) -> bool:
        return "tfevents" in path.name

    def _kind(self, path: Path) -> str:
        """metrics, console, tfevents, samples, gpu or "" (not ours); looked at again only when it grew."""
        if self._is_events(path):
            return "tfevents"
        if path.name == _GPU_FILE:
            return "gpu"
        ours = path.suffix in {".jsonl", *_CONSOLE_SUFFIXES} and not path.name.startswith("reward_parts")
        if not ours and self.root != path:  # a file named on the command line is looked at in any case
            return ""
        try:
            size = path.stat().st_size
        except OSError as error:
            self._note(f"{self._name(path)}: {error.strerror}")
            return ""
        known = self._kinds.get(path)
        if known and (known[1] or known[0] == size):
            return known[1]
        if not os.access(path, os.R_OK):
            self._note(f"{self._name(path)}: permission denied")
            return ""
        head = read_head(path)
        if log_parser.looks_like_metrics(head):
            kind = "metrics"
        elif path.suffix == ".jsonl" and log_parser.looks_like_samples(head):
            kind = "samples"
        elif path.suffix == ".jsonl" and path != self.root:
            kind = ""
        elif log_parser.looks_like_console(head) or log_parser.looks_like_console(read_end(path)):
            kind = "console"
        else:
            kind = ""
        self._kinds[path] = (size, kind)
        return kind
