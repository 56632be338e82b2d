"""The installer's parts: pip's settings for uv, the plan, the machine's checks, the fixes."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from common.check_env.environment import Stamp
from common.check_env.gpu import Driver, Gpu
from common.install_env import pip_config, steps, target
from common.install_env.fixes import likely_fix
from common.install_env.options import Options, Plan, SetupError, decide

GPU = Driver("580.65.06", "13.0", [Gpu("0", "H100", 81559, 81000, 9.0)])


@pytest.mark.parametrize(
    ("settings", "environ", "expected"),
    [
        ({}, {}, {}),
        ({"index-url": "https://m/simple"}, {}, {"UV_DEFAULT_INDEX": "https://m/simple"}),
        ({"index-url": "https://m/simple"}, {"UV_DEFAULT_INDEX": "https://mine"}, {}),
        ({"index-url": "https://m/simple"}, {"UV_INDEX_URL": "https://mine"}, {}),
        (
            {"extra-index-url": "https://a/simple\nhttps://b/simple file:///nonexistent"},
            {},
            {"UV_INDEX": "https://a/simple https://b/simple", "UV_INDEX_STRATEGY": "unsafe-best-match"},
        ),
        ({"extra-index-url": "file:///nonexistent"}, {}, {}),
        ({"find-links": "/ /nonexistent https://w"}, {}, {"UV_FIND_LINKS": "/,https://w"}),
        ({"cert": "/etc/ca.pem"}, {}, {"SSL_CERT_FILE": "/etc/ca.pem"}),
        ({"cert": "/etc/ca.pem"}, {"SSL_CERT_FILE": "/mine.pem"}, {}),
        ({"trusted-host": "a\nb:8080"}, {}, {"UV_INSECURE_HOST": "a b:8080"}),
        ({"proxy": "user@proxy:3128"}, {}, {"ALL_PROXY": "http://user@proxy:3128"}),
        ({"proxy": "http://p:1"}, {"https_proxy": "http://q:2"}, {}),
        ({"no-index": "true"}, {}, {"UV_NO_INDEX": "1"}),
        ({"timeout": "15"}, {}, {}),
    ],
)
def test_pip_settings_for_uv(
    settings: dict[str, str], environ: dict[str, str], expected: dict[str, str]
) -> None:
    assert pip_config.for_uv(settings, environ) == expected


def test_pip_settings_are_read_from_pip_itself(tmp_path: Path) -> None:
    """Order: [global] < [install] < PIP_* variables; the environment is named as pip prints it."""
    pip = tmp_path / "python"
    printed = """global.index-url='https://g/simple'
install.index-url='https://i/simple'
global.extra-index-url='https://a\\nhttps://b'
list.format='columns'
"""
    (tmp_path / "printed").write_text(printed)
    pip.write_text(f'#!/bin/sh\ncat "{tmp_path}/printed"\n')
    pip.chmod(0o755)
    settings = pip_config.read(str(pip), {"PIP_CERT": "/ca.pem", "PIP_NO_INDEX": ""})
    assert settings == {
        "index-url": "https://i/simple",
        "extra-index-url": "https://a\nhttps://b",
        "cert": "/ca.pem",
    }
    assert pip_config.read(str(pip), {"PIP_INDEX_URL": "https://env"})["index-url"] == "https://env"


def test_passwords_are_masked() -> None:
    text = "UV_DEFAULT_INDEX=https://user:p%40ss@host/simple and http://token@h2/ but https://plain/x@1"
    assert pip_config.redact(text) == (
        "UV_DEFAULT_INDEX=https://***@host/simple and http://***@h2/ but https://plain/x@1"
    )


def options(**changes: object) -> Options:
    return Options("1-2", Path("/env"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "stamp", "driver", "expected"),
    [
        ({}, None, None, ("cpu", "vllm", False)),
        ({}, None, GPU, ("gpu", "vllm", False)),
        ({}, None, Driver(problem="failed"), ("cpu", "vllm", False)),
        ({"engine": "sglang"}, None, None, ("gpu", "sglang", False)),
        ({"kind": "cpu", "dev": True}, None, GPU, ("cpu", "vllm", True)),
        # An environment keeps what it holds: a login node without a GPU must not take the GPU set away.
        ({}, Stamp("0", "gpu", "sglang", True, "3.11.7"), None, ("gpu", "sglang", True)),
        ({}, Stamp("0", "cpu", "vllm", False, "3.11.7"), GPU, ("cpu", "vllm", False)),
        ({"kind": "gpu"}, Stamp("0", "cpu", "vllm", True, "3.11.7"), None, ("gpu", "vllm", True)),
        ({"engine": "vllm"}, Stamp("0", "gpu", "sglang", False, "3.11.7"), GPU, ("gpu", "vllm", False)),
        ({"kind": "cpu"}, Stamp("0", "gpu", "sglang", False, "3.11.7"), GPU, ("cpu", "vllm", False)),
    ],
)
def test_plan(
    flags: dict[str, object], stamp: Stamp | None, driver: Driver | None, expected: tuple[str, str, bool]
) -> None:
    plan = decide(options(**flags), stamp, driver)
    assert (plan.kind, plan.engine, plan.dev) == expected
    assert plan.reason


def test_sglang_does_not_replace_a_cpu_set_unasked() -> None:
    with pytest.raises(SetupError, match="add --gpu"):
        decide(options(engine="sglang"), Stamp("0", "cpu", "vllm", False, "3.11.7"), None)


def test_disk_is_checked_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(100, 0, 5e9))
    plan = Plan("cpu", "vllm", False, "")
    with pytest.raises(SetupError, match=r"not enough disk: 5\.0 GB free at .*, the cpu set needs 9 GB"):
        target.check_disk(tmp_path / "not" / "there", plan, fresh=True)
    target.check_disk(tmp_path, plan, fresh=False)


@pytest.mark.parametrize(
    ("system", "machine", "libc", "engine", "words"),
    [
        ("Darwin", "arm64", "2.36", "vllm", "built for Linux, this is Darwin"),
        ("Linux", "ppc64le", "2.36", "vllm", "no torch and vLLM wheels for ppc64le"),
        ("Linux", "x86_64", "2.17", "vllm", "glibc 2.17 is too old"),
        ("Linux", "x86_64", "2.31", "sglang", "glibc 2.31 is too old"),
    ],
)
def test_machines_without_wheels(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, libc: str, engine: str, words: str
) -> None:
    monkeypatch.setattr(target.platform, "system", lambda: system)
    monkeypatch.setattr(target.platform, "machine", lambda: machine)
    monkeypatch.setattr(target.platform, "libc_ver", lambda: ("glibc", libc))
    with pytest.raises(SetupError, match=words):
        target.check_machine(Plan("gpu", engine, False, ""))


def test_link_mode_is_left_to_uv_on_one_disk(tmp_path: Path) -> None:
    environ = {"UV_CACHE_DIR": str(tmp_path / "cache")}
    assert target.link_mode(tmp_path / "env", environ) == {}
    assert target.link_mode(Path("/dev/shm/env"), environ) == {"UV_LINK_MODE": "copy"}
    assert target.link_mode(Path("/dev/shm/env"), {**environ, "UV_LINK_MODE": "symlink"}) == {}


@pytest.mark.parametrize(
    ("output", "word"),
    [
        ("failed to write: No space left on device (os error 28)", "disk is full"),
        ("error: failed to create directory: Permission denied (os error 13)", "no permission"),
        ("The virtual environment was not created because ensurepip is not available", "python3-venv"),
        ("invalid peer certificate: UnknownIssuer", "SSL_CERT_FILE"),
        ("HTTP status client error (401 Unauthorized) for url", "user name and password"),
        ("Failed to fetch: `https://pypi.org/` dns error: failed to lookup address", "HTTPS_PROXY"),
        ("operation timed out", "mirror"),
        ("error: command 'gcc' failed: No such file or directory", "build-essential"),
        ("fatal error: Python.h: No such file or directory", "python3-dev"),
        ("Because torch==2.11.0 has no wheels with a matching Python ABI tag", "Python 3.11"),
        ("process was Killed", "memory"),
    ],
)
def test_likely_fix(output: str, word: str) -> None:
    assert word in likely_fix(output)


def test_no_fix_is_made_up() -> None:
    assert likely_fix("error: something never seen") == ""


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Downloading torch (507.9MiB)", True),
        ("  Downloading numpy (15.8MiB)", False),
        ("Downloading big (1.2GiB)", True),
        (" Downloaded torch", False),
        ("   Building antlr4-python3-runtime==4.9.3", True),
        ("Installed 255 packages in 2.05s", True),
        (" + torch==2.11.0", False),
    ],
)
def test_progress_that_is_shown(line: str, shown: bool) -> None:
    assert steps._tells_of_progress(line) is shown
