"""The vLLM path: the answers of the transformers path, handed on one by one; no silent fallback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import rows_of

ROOT = Path(__file__).resolve().parents[2]


def program(*words: str | Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "common.test_model", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_same_answers_as_transformers_in_float32(
    model: Path, data: Path, reward: Path, tmp_path: Path
) -> None:
    with data.open("a") as handle:
        handle.write(json.dumps({"question": "y" * 900, "answer": "12"}) + "\n")
    flags = ["--model_path", model, "--batch", "--input_file", data, "--reward", reward, "--temperature", "0"]
    flags += ["--max_new_tokens", "12", "--dtype", "float32"]
    for name, more in (("vllm", ["--use_vllm"]), ("transformers", [])):
        done = program(*flags, *more, "--output_file", tmp_path / f"{name}.jsonl")
        assert done.returncode == 1, done.stderr  # the prompt that does not fit is an error of its own
    ours, theirs = rows_of(tmp_path / "vllm.jsonl"), rows_of(tmp_path / "transformers.jsonl")
    assert "the prompt has" in ours[12]["error"] and len(ours) == 13
    for row, other in zip(ours, theirs, strict=True):
        assert (row["output"], row["tokens"], row["score"]) == (
            other["output"],
            other["tokens"],
            other["score"],
        )
        assert (row["input"], row["finish_reason"]) == (other["input"], other["finish_reason"])


def test_vllm_that_cannot_be_used_says_why_and_is_not_replaced(
    model: Path, data: Path, tmp_path: Path
) -> None:
    from argparse import Namespace

    from common.checkpoints import merge, resolve
    from common.evaluation.backends import load
    from common.launcher.errors import UserError

    class Blocked:
        """A machine without vLLM."""

        def find_spec(self, name: str, *_: object) -> None:
            if name.partition(".")[0] == "vllm":
                raise ModuleNotFoundError("No module named 'vllm'", name="vllm")

    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "vllm"}
    sys.meta_path.insert(0, Blocked())
    try:
        options = Namespace(use_vllm=True, dtype="auto", tp=1, seed=0, batch_size=0, enforce_eager=False)
        with pytest.raises(
            UserError, match=r"vLLM cannot be used: ModuleNotFoundError: No module named 'vllm'"
        ):
            load(merge(resolve(str(model))), options, 64)
    finally:
        sys.meta_path.pop(0)
        sys.modules.update(hidden)
