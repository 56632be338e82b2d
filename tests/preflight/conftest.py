"""Composed launches to try checks on: real commands of the real train.sh, on machines that the tests describe."""

from __future__ import annotations

import copy
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import omegaconf.base
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from common.check_env.gpu import Gpu
from common.cpu.model import ensure_bundled_model
from common.data_utils import prepare
from common.preflight import verl_check
from common.preflight.command import Command, parse
from common.preflight.composing import added_keys, base_of, compose
from common.preflight.finding import ordered
from common.preflight.job import Job
from common.preflight.machine import Machine
from common.preflight.report import Report, check
from common.preflight.verl_check import Opinion

ROOT = Path(__file__).resolve().parents[2]
DATA = {"rl": "grpo", "sft": "sft", "preference": "dpo"}
# What a test run on the CPU would have; GPUs are pretended, as no GPU can exist here.
CPU_BOX = Machine(
    cores=4,
    ram_total=64 << 30,
    ram_free=60 << 30,
    shm_free=16 << 30,
    gpus=[],
    environment={"VERL_PLATFORM": "cpu", "RAY_TMPDIR": "/no/ray"},
    importable=lambda name: name != "flash_attn",
    disk_free=lambda path: 1 << 40,
    port_free=lambda port: True,
    filesystem=lambda path: "nfs4",
)
GPU_BOX = replace(
    CPU_BOX,
    cores=96,
    ram_total=1000 << 30,
    ram_free=900 << 30,
    gpus=[Gpu(str(i), "NVIDIA H100 80GB HBM3", 81559, 81000, 9.0) for i in range(8)],
    environment={"RAY_TMPDIR": "/no/ray"},
    importable=lambda name: True,
    disk_free=lambda path: 20 << 40,
)

ON_A_CLUSTER = replace(GPU_BOX, environment={"RAY_ADDRESS": "10.0.0.1:6379"})

# OmegaConf parses each of a config's 200 interpolations anew whenever it is read: half the time of these tests.
omegaconf.base.parse = cache(omegaconf.base.parse)


@cache
def words_of(method: str, *flags: str) -> tuple[str, ...]:
    """The command that ``train.sh --compose`` prints."""
    command = [
        "bash",
        str(ROOT / method / "train.sh"),
        "--compose",
        "--name",
        "pf",
        "--output_dir",
        "/out",
        *flags,
    ]
    env = {**os.environ, "VERL_TRAINING_PYTHON": sys.executable}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(shlex.split(done.stdout))


@cache
def files(task: str) -> tuple[str, str]:
    """Training and validation file of the method's sample data, as a launch converts them."""
    from common.cpu.model import cache_root

    folder = ROOT / DATA[task] / "data"
    found = prepare(str(folder / "train.jsonl"), task, cache_root() / "data", val=str(folder / "val.jsonl"))
    return found.train, str(found.val)


@cache
def base_command(method: str, *flags: str) -> Command:
    """A launch of the small model on the sample data."""
    command = parse(list(words_of(method, *flags, "--model", str(ensure_bundled_model()))))
    train, val = files(command.task)
    given = [f"data.train_files={train}", f"data.val_files={val}"]
    kept = [w for w in command.overrides if not w.startswith(("data.train_files", "data.val_files"))]
    return replace(command, overrides=[*given, *kept])


@cache
def base_configs(method: str, *flags: str) -> tuple[DictConfig, DictConfig]:
    """(with the launcher's overrides, without any), composed once."""
    command = base_command(method, *flags)
    return compose(command), base_of(command)


def with_overrides(config: DictConfig, words: list[str]) -> DictConfig:
    """Hydra's own last step of composing, on a copy: what `compose` gives with *words* at the end."""
    changed = copy.deepcopy(config)
    OmegaConf.set_struct(changed, True)
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(words), changed)
    return changed


def verl(config: DictConfig, added: list[str]) -> Opinion:
    """verl's own opinion, asked in this process; imported once."""
    import gspo.plugin  # noqa: F401  (GSPO's estimator, as its launcher registers it)

    return verl_check.ask_here(config, added)


@pytest.fixture(scope="session")
def examined() -> Callable[..., Report]:
    """Examines a launch with key=values of the user, as launched by train.sh (with a record)."""

    def run(
        method: str,
        flags: tuple[str, ...],
        words: list[str],
        machine: Machine | None = None,
        record: dict[str, Any] | None = None,
        ask: bool = False,
    ) -> Report:
        command = base_command(method, *flags)
        config, base = base_configs(method, *flags)
        command = replace(command, overrides=[*command.overrides, *words])
        config = with_overrides(config, words) if words else config
        there = machine or (CPU_BOX if "cpu" in flags else GPU_BOX)
        planned = {
            "method": method,
            "run": "pf",
            "extra": words,
            "knobs": {},
            "checkpoint_dir": f"/out/checkpoints/{method}/pf",
            "data": {"overlong": {"train": {"rows": 480}}, "data_sources": ["arithmetic"]},
            "attempts": [{"resumed_from_step": None}],
            **(record or {}),
        }
        job = Job(command, config, base, there, planned)
        report = check(job, lambda: verl(config, added_keys(command, base)) if ask else Opinion())
        report.findings = ordered(report.findings)
        return report

    return run
