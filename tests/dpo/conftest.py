"""Fixtures of the DPO tests; what they are made of is in dpo_world.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from dpo_world import World, pair_rows, preference_parquet, tiny_model

from common.cpu.model import ensure_bundled_model

# tests/ holds the launcher's fixtures (an installed package is called `tests` too).
sys.path.append(str(Path(__file__).resolve().parents[1]))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ensure_bundled_model())


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> World:
    folder = tmp_path_factory.mktemp("dpo")
    rows = pair_rows()
    return World(
        folder, tiny_model(folder / "model", tokenizer), preference_parquet(folder / "pairs.parquet", rows)
    )


@pytest.fixture(scope="session", autouse=True)
def _quiet_tokenizers() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
