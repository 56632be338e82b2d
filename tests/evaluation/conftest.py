"""A tiny real model, data and a way to call the evaluator in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_model import tiny_model

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve rows of two kinds, prompts of different lengths."""
    path = tmp_path / "data.jsonl"
    rows = [
        {
            "question": "x" * (1 + 3 * i) + "?",
            "answer": str(i),
            "level": "easy" if i % 3 else "hard",
            "id": f"r{i}",
        }
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def reward(tmp_path: Path) -> Path:
    """Scores by the answer's length; knows extra_info and a knob, returns parts."""
    path = tmp_path / "reward.py"
    path.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None, scale=1.0):\n"
        "    assert extra_info['index'] == int(ground_truth)\n"
        "    return {'score': scale * len(solution_str) / 100, 'acc': float(int(ground_truth) % 2),\n"
        "            'long': len(solution_str) > 5}\n"
        "\n"
        "async def slow(solution_str, ground_truth):\n"
        "    return float(ground_truth == '3')\n"
        "\n"
        "def broken(solution_str, ground_truth):\n"
        "    if ground_truth == '5':\n"
        "        raise ValueError('no five')\n"
        "    return 1.0\n"
        "\n"
        "def stuck(solution_str, ground_truth):\n"
        "    import threading\n"
        "    if ground_truth == '2':\n"
        "        threading.Event().wait()\n"
        "    return 1.0\n"
    )
    return path


@pytest.fixture
def evaluate(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `--batch` on the tiny model with greedy decoding and short answers; returns the exit code."""
    monkeypatch.setenv("VERL_TRAINING_CACHE", str(tmp_path / "cache"))

    def run(*flags: str, **values: Any) -> int:
        from common.evaluation import batch, options

        words = {
            "model_path": model,
            "input_file": data,
            "output_file": tmp_path / "results.xlsx",
            "temperature": 0,
            "max_new_tokens": 6,
            **values,
        }
        own = options.parse(["--batch", *flags, *(f"--{name}={value}" for name, value in words.items())])
        return (batch.read_again if own.rescore or own.export_only else batch.run)(own)

    return run


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a record."""
    return [json.loads(line) for line in path.read_text().splitlines()]
