"""A judge's settings file, its server, and a place for everything it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.judge import service
from common.judge.service import Service, shared_service

from .judge_server import MODEL, Act, JudgeServer, Seen, serving

KEY_ENV = "TEST_JUDGE_KEY"
KEY = "sk-test-0123456789abcdefSECRET"


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Seen], Act]], JudgeServer]]:
    """Start a server with a behaviour; all end with the test."""
    with ExitStack() as stack:
        yield lambda act: stack.enter_context(serving(act))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a settings file for a server; the key is in the environment."""
    monkeypatch.setenv(KEY_ENV, KEY)

    def write(server: JudgeServer | str, **more: Any) -> str:
        url = server if isinstance(server, str) else server.url
        base = {"provider": "custom", "model": MODEL, "base_url": url, "api_key_env": KEY_ENV}
        quick = {"timeout": 5, "backoff": 0.01, "cache": str(tmp_path / "cache.sqlite3")}
        path = tmp_path / f"judge-{len(list(tmp_path.glob('judge-*')))}.yaml"
        path.write_text(yaml.safe_dump({**base, **quick, **more}))
        return str(path)

    return write


@pytest.fixture(autouse=True)
def no_service_left() -> Iterator[None]:
    """Every judge that a test made is closed, so that its files are complete and its thread ends."""
    yield
    for made in service._SERVICES.values():
        made.close()
    service._SERVICES.clear()


def make(config: str, run_dir: Path | str = "", **changes: Any) -> Service:
    return shared_service(config, changes, str(run_dir))
