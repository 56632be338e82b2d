"""Shared pieces of the reward tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common.reward_functions.hard_math import HardMath


@pytest.fixture(scope="session")
def hard_math() -> Iterator[HardMath]:
    """One pool of math-verify processes for all tests that need algebra."""
    yield HardMath.shared()
    HardMath.shared().close()
