"""Shared pieces of the reward tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common.reward_functions.hard_math import HardMath


@pytest.fixture(scope="session")
def hard_math() -> Iterator[HardMath]:
    """One pool of math-verify processes for all tests that need algebra."""
    HardMath.shared().equal("e^x", "e^y", 60.0)  # the first call imports sympy
    yield HardMath.shared()
    HardMath.shared().close()
