"""common/env.sh: which environment is chosen, when it counts as ready, and that asking costs little."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from env_checkout import Checkout


def test_sourcing_does_nothing(checkout: Checkout) -> None:
    before = "before=$(compgen -v | grep -vE '^(_|BASH_.*|before|PIPESTATUS)$'); "
    checkout.program("grep", f'exec {shutil.which("grep")} "$@"')
    script = f"set -eu; {before} source '{checkout.root}/common/env.sh'; "
    script += "diff <(echo \"$before\") <(compgen -v | grep -vE '^(_|BASH_.*|before|PIPESTATUS)$'); echo same"
    checkout.program("diff", f'exec {shutil.which("diff")} "$@"')
    done = checkout.call(["bash", "-c", script])
    assert done.stdout == "same\n", done.stdout + done.stderr
    assert not checkout.venv.exists()


def test_ensure_makes_the_environment_and_keeps_stdout_clean(checkout: Checkout) -> None:
    done = checkout.shell('env::ensure; echo "$PYTHON"; env::kind')
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{checkout.venv}/bin/python\ncpu\n"
    assert "installing: CPU set" in done.stderr


def test_ready_environment_starts_no_python(installed: Checkout) -> None:
    """Every Python on PATH is out of order, and still the environment is found."""
    for program in installed.bin.glob("python*"):
        program.rename(program.with_name(f"hidden-{program.name}"))
    try:
        done = installed.shell('env::ensure; echo "$PYTHON"; env::kind')
    finally:
        for program in installed.bin.glob("hidden-*"):
            program.rename(program.with_name(program.name.removeprefix("hidden-")))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{installed.venv}/bin/python\ncpu\n", "")


def test_requirements_that_changed_bring_setup_back(checkout: Checkout, installed: Checkout) -> None:
    shutil.copytree(installed.venv, checkout.venv, symlinks=True)
    ready = 'root=$(env::root); env::ready "$root" "$root/.venv" && echo ready || echo stale'
    assert checkout.shell(ready).stdout == "ready\n"
    with (checkout.root / "requirements" / "lock-cpu.txt").open("a") as lock:
        lock.write("newpackage==1.0\n")
    assert checkout.shell(ready).stdout == "stale\n"
    assert checkout.shell("env::ensure").returncode == 0
    assert checkout.shell(ready).stdout == "ready\n"
    assert list(checkout.venv.glob("lib/python3*/site-packages/newpackage-1.0.dist-info"))


@pytest.mark.slow
def test_dev_tools_are_added_when_asked_for(checkout: Checkout, installed: Checkout) -> None:
    shutil.copytree(installed.venv, checkout.venv, symlinks=True)
    assert checkout.shell("env::ensure --dev").returncode == 0
    assert checkout.uv_calls[-1][-1].endswith("lock-dev.txt")
    calls = len(checkout.uv_calls)
    assert checkout.shell("env::ensure --dev; env::ensure").returncode == 0
    assert len(checkout.uv_calls) == calls


@pytest.mark.slow
def test_unfinished_installation_is_gone_on_with(checkout: Checkout, installed: Checkout) -> None:
    shutil.copytree(installed.venv, checkout.venv, symlinks=True)
    (checkout.venv / "verl_training_env.txt").rename(checkout.venv / "verl_training_env.partial")
    done = checkout.shell("env::ensure")
    assert done.returncode == 0 and "installing: CPU set" in done.stderr


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_active_environment_with_verl_wins(
    checkout: Checkout, installed: Checkout, tmp_path: Path, variable: str
) -> None:
    """An environment that the user filled is used as it is: nothing is installed into it."""
    active = tmp_path / "the user's"
    shutil.copytree(installed.venv, active, symlinks=True)
    (active / "verl_training_env.txt").unlink()
    done = checkout.shell('env::ensure; echo "$PYTHON"', **{variable: str(active)})
    assert (done.stdout, done.stderr) == (f"{active}/bin/python\n", "")
    assert not checkout.uv_calls


def test_active_environment_without_verl_yields_to_the_repositorys(
    checkout: Checkout, installed: Checkout, tmp_path: Path
) -> None:
    shutil.copytree(installed.venv, checkout.venv, symlinks=True)
    active = tmp_path / "other"
    (active / "bin").mkdir(parents=True)
    done = checkout.shell('env::ensure; echo "$PYTHON"', VIRTUAL_ENV=str(active))
    assert done.stdout == f"{checkout.venv}/bin/python\n", done.stderr


def test_override(checkout: Checkout) -> None:
    checkout.program("my-python", "exit 0")
    done = checkout.shell('env::ensure; echo "$PYTHON"', VERL_TRAINING_PYTHON="my-python")
    assert done.stdout == "my-python\n"
    bad = checkout.shell("env::ensure", VERL_TRAINING_PYTHON="/nonexistent/python")
    assert bad.returncode == 2 and "VERL_TRAINING_PYTHON=/nonexistent/python is not a program" in bad.stderr


def test_digest_does_not_depend_on_the_language(checkout: Checkout) -> None:
    script = 'env::digest "$(env::root)"'
    digests = {
        checkout.shell(script, LC_ALL=name).stdout for name in ("C", "C.UTF-8", "en_US.UTF-8", "zh_CN.UTF-8")
    }
    assert len(digests) == 1 and digests != {""}


def test_failing_setup_is_handed_on(checkout: Checkout) -> None:
    done = checkout.shell("env::ensure; echo reached", FAKE_UV_FAIL="error: no space left on device")
    assert done.returncode == 1 and "reached" not in done.stdout
    assert "the disk is full" in done.stderr
