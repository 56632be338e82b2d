"""Imports the heavy packages in processes of their own: one that fails, hangs or crashes is a finding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from common.check_env.environment import ROOT, Stamp
from common.check_env.finding import ERROR, OK, WARNING, Finding

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


def groups(held: Stamp) -> list[list[str]]:
    """Module names, one list per process; each list is imported in order."""
    engine = "sglang" if held.kind == "gpu" and held.engine == "sglang" else "vllm"
    first = ["torch", "tensordict", "transfer_queue", "verl", "transformers", "peft"]
    if held.kind == "gpu":
        first.append("flash_attn")
    return [first, [engine], ["ray", "wandb", "gradio", "math_verify"]]


def probe(held: Stamp, timeout: float = 60.0) -> dict[str, dict[str, object]]:
    """Import everything; {module: {error, seconds, version, ...}}. `timeout` in seconds, per process."""
    found: dict[str, dict[str, object]] = {}
    with ThreadPoolExecutor(max_workers=min(3, os.cpu_count() or 1)) as pool:
        for facts in pool.map(lambda names: _import(names, timeout), groups(held)):
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
                yield Finding(
                    "imports", name, WARNING, detail, "FLASH_ATTN=auto ./setup_env.sh tries to get it"
                )
            else:
                fix = "uv pip uninstall flash-attn (a broken one is worse than none)"
                yield Finding("imports", name, ERROR, error, fix)
            continue
        missing = f"No module named '{name}'" in error
        fix = (
            "./setup_env.sh" if missing else f"uv pip install --no-deps --reinstall {name.replace('_', '-')}"
        )
        yield Finding("imports", name, ERROR, error[:300], fix)


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
        end = f"no end after {timeout:g} s"
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
