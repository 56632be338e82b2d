"""Fixtures of the environment tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from env_checkout import Checkout, make_checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A fresh checkout without an environment."""
    return make_checkout(tmp_path)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which ./setup_env.sh has run once; tests that use it leave it as it is."""
    made = make_checkout(tmp_path_factory.mktemp("installed"))
    done = made.run()
    assert done.returncode == 0, done.stdout + done.stderr
    return made
