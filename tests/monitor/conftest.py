"""Fixtures of the monitor's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from monitor_fixtures import ROOT

from monitor import settings
from monitor.api import PanelApi
from monitor.metrics_collector import Collector
from monitor.settings import Settings

# A busy machine is no failure: examples are judged by what they give, not by how long they take.
hypothesis.settings.register_profile(
    "monitor", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("monitor")


@pytest.fixture(scope="session")
def config() -> Settings:
    """The shipped settings."""
    return settings.load(ROOT / "monitor" / "config.yaml")


@pytest.fixture
def loaded(config: Settings) -> Callable[[Path], PanelApi]:
    """Read a folder completely and return the panel's functions over it."""

    def load(root: Path) -> PanelApi:
        collector = Collector(root)
        collector.load_all()
        return PanelApi(collector, config)

    return load
