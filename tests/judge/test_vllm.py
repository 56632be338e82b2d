"""A real judge: vLLM's OpenAI-compatible server on the CPU with the bundled small model."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cpu.test_patches import CPU_ENV

from common.cpu.model import ensure_bundled_model
from common.judge.check import check_config
from common.judge.failures import JudgeError
from common.judge.metrics import totals
from ppo.api_reward import compute_score

from .conftest import make

pytestmark = pytest.mark.e2e
# The smallest model needs a grammar to keep to the form; `request` passes it on, as to any server that has it.
SCORE = {"type": "object", "properties": {"score": {"enum": list(range(11))}}, "required": ["score"]}
GRAMMAR = {"response_format": {"type": "json_schema", "json_schema": {"name": "grade", "schema": SCORE}}}


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's base_url."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--served-model-name",
        "smollm2",
        "--dtype",
        "float32",
    ]
    words += [
        "--enforce-eager",
        "--max-model-len",
        "2048",
        "--max-num-seqs",
        "8",
        "--max-num-batched-tokens",
        "2048",
    ]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCHDYNAMO_DISABLE": "1",
    }
    log = tmp_path_factory.mktemp("vllm") / "log"
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(ensure_bundled_model()),
    ]
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, *words],
            env={**os.environ, "PYTHONPATH": CPU_ENV["PYTHONPATH"], "OMP_NUM_THREADS": "2", **settings},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _until_healthy(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=30)


def _until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1.0)  # the server has no event to wait for
    raise AssertionError(f"vLLM did not start: {log.read_text()[-3000:]}")


def write(tmp_path: Path, url: str, **more: Any) -> str:
    path = tmp_path / f"judge-{len(list(tmp_path.iterdir()))}.yaml"
    base = {"provider": "vllm", "base_url": url, "model": "smollm2", "max_tokens": 24, "timeout": 120}
    path.write_text(
        yaml.safe_dump({**base, "request": GRAMMAR, "cache": str(tmp_path / "c.sqlite3"), **more})
    )
    return str(path)


def test_a_model_on_this_machine_as_judge(vllm: str, tmp_path: Path) -> None:
    assert str(check_config(write(tmp_path, vllm))).startswith(f"judge ok: smollm2 at {vllm} answered")
    with pytest.raises(JudgeError, match=r"has no model 'smollm3'; did you mean 'smollm2'\?"):
        check_config(write(tmp_path, vllm, model="smollm3"))
    with pytest.raises(JudgeError, match=r"check base_url \(most need /v1 at the end\)"):
        check_config(write(tmp_path, vllm.removesuffix("/v1")))

    config = write(tmp_path, vllm, preset="math")

    async def grade() -> list[dict[str, Any]]:
        rows = [(f"What is {a} + {b}?", str(a + b)) for a, b in ((1, 2), (20, 22), (7, 8), (9, 9))]
        calls = [
            compute_score(
                "toy", answer, truth, {"raw_prompt": [{"role": "user", "content": question}]},
                config=config, run_dir=str(tmp_path),
            )
            for question, truth in rows
            for answer in (truth, "I do not know.")
        ]  # fmt: skip
        return await asyncio.gather(*calls)

    first, again = asyncio.run(grade()), asyncio.run(grade())
    assert len(first) == 8
    assert all(result["judge_failed"] == 0 and 0 <= result["score"] <= 1 for result in first)
    assert all((result["score"] * 10) == pytest.approx(round(result["score"] * 10)) for result in first)
    assert [r["score"] for r in again] == [r["score"] for r in first]
    assert [r["judge_cached"] for r in again] == [1.0] * 8
    make(config, tmp_path).close()
    counted = totals(tmp_path)
    assert (counted["samples"], counted["calls"], counted["cache_hits"], counted["failures"]) == (16, 8, 8, 0)
    assert counted["tokens_in"] > 8 * 200
    assert 8 * 4 <= counted["tokens_out"] <= 8 * 24
