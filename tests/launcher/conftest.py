"""Runs a real train.sh with an interpreter on its way to verl that records what it was given."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[2]

# Everything but the hand-over to verl runs for real, in the real interpreter. A shell stands in front of it, since a
# launch starts a dozen interpreters. The preflight takes seconds of every launch; tests/preflight runs it.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
  "-m common.preflight" | "-m common.preflight.verl_check") [[ -n "${{REAL_PREFLIGHT:-}}" ]] || exit 0 ;;
  "-m verl.trainer.main_ppo" | "-m torch.distributed.run") exec {python} "$0.verl" "$@" ;;
esac
exec {python} "$@"
"""
FAKE_VERL = """
import json, os, subprocess, sys
names = ("PYTHONPATH", "VERL_PLATFORM", "VERL_FILE_LOGGER_PATH", "WANDB_MODE", "VERL_TRAINING_RUN")
record = {"argv": sys.argv[1:], "env": {n: os.environ.get(n) for n in names}, "cwd": os.getcwd()}
with open(os.environ["FAKE_RECORD"], "w") as file:
    json.dump(record, file)
print("hello from the fake verl", flush=True)
script = os.environ.get("FAKE_SCRIPT")
sys.exit(subprocess.call([sys.executable, "-c", script]) if script else int(os.environ.get("FAKE_EXIT", "0")))
"""


@dataclass
class Launch:
    """What a launch did: exit code, output, and the recorded call of verl (None when it was not reached)."""

    code: int
    out: str
    err: str
    call: dict | None

    @property
    def overrides(self) -> dict[str, str]:
        """verl's overrides by key, + and ~ removed; a later one wins as in Hydra."""
        assert self.call is not None, self.err
        words = self.call["argv"]
        start = words.index("--config-name") + 2
        return {word.split("=", 1)[0].lstrip("+~"): word.split("=", 1)[1] for word in words[start:]}


@dataclass
class Launcher:
    """Calls ``<method>/train.sh`` in a clean environment with its output in a temporary folder."""

    folder: Path
    output: Path
    env: dict[str, str] = field(default_factory=dict)

    def command(self, *args: str, method: str = "grpo") -> list[str]:
        return ["bash", str(ROOT / method / "train.sh"), "--output_dir", str(self.output), *args]

    def environment(self, **extra: str) -> dict[str, str]:
        keep = ("PATH", "HOME", "LANG", "LC_ALL", "VERL_TRAINING_CACHE", "XDG_CACHE_HOME", "TMPDIR")
        base = {name: os.environ[name] for name in keep if name in os.environ}
        fake = self.folder / "python"
        record = self.folder / "record.json"
        return {**base, "VERL_TRAINING_PYTHON": str(fake), "FAKE_RECORD": str(record), **self.env, **extra}

    def __call__(
        self, *args: str, method: str = "grpo", cwd: Path = ROOT, timeout: float = 60, **env: str
    ) -> Launch:
        record = self.folder / "record.json"
        record.unlink(missing_ok=True)
        done = subprocess.run(
            self.command(*args, method=method),
            env=self.environment(**env),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        call = json.loads(record.read_text()) if record.exists() else None
        return Launch(done.returncode, done.stdout, done.stderr, call)

    def dry_run(self, *args: str, method: str = "grpo", **env: str) -> list[str]:
        """The words that ``--dry-run`` prints, from the program on."""
        done = self(*args, "--dry-run", method=method, **env)
        assert done.code == 0, done.err
        words = shlex.split(done.out)
        return words[words.index("-m") - 1 :]

    def run_json(self, name: str, method: str = "grpo") -> dict:
        return json.loads((self.output / "logs" / method / name / "run.json").read_text())

    def fake_checkpoint(self, name: str, step: int, world_size: int = 1, method: str = "grpo") -> Path:
        """The part of verl's checkpoint layout that the launcher looks at."""
        root = self.output / "checkpoints" / method / name
        actor = root / f"global_step_{step}" / "actor"
        actor.mkdir(parents=True)
        for rank in range(world_size):
            (actor / f"model_world_size_{world_size}_rank_{rank}.pt").touch()
        (root / "latest_checkpointed_iteration.txt").write_text(str(step))
        return root


def composed(words: list[str], method: str = "grpo") -> DictConfig:
    """The config that verl would see for this argv."""
    with initialize_config_dir(str(ROOT / method), version_base=None):
        return compose("config", words[words.index("--config-name") + 2 :])


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def launch(tmp_path: Path) -> Launcher:
    folder = tmp_path / "bin"
    folder.mkdir()
    executable(folder / "python", FAKE_PYTHON.format(python=shlex.quote(sys.executable)))
    (folder / "python.verl").write_text(FAKE_VERL)
    return Launcher(folder, tmp_path / "out")
