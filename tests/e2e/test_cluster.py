"""Two Ray nodes on one host, each with one training process."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from common.launcher import processes

from .conftest import Trainer

pytestmark = [pytest.mark.e2e, pytest.mark.matrix]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment that joins a cluster of two nodes; ends what it started, by its own tag."""
    tag, port = f"test-cluster-{secrets.token_hex(4)}", free_port()
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(secrets.token_hex(16))
    env = {
        **os.environ,
        processes.TAG: tag,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(tmp_path_factory.mktemp("r")),
    }
    ray = str(Path(sys.executable).parent / "ray")
    common = ["--num-gpus=1", "--num-cpus=12", "--disable-usage-stats", "--object-store-memory=500000000"]
    head = ["start", "--head", f"--port={port}", "--include-dashboard=false"]
    worker = ["start", f"--address=127.0.0.1:{port}"]
    try:
        for arguments in (head, worker):
            done = subprocess.run(
                [ray, *arguments, *common], env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
        yield {
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
        }
    finally:
        processes.end_tagged(tag)


def test_two_node_cluster_trains_and_survives_the_run(train: Trainer, cluster: dict[str, str]) -> None:
    if psutil.virtual_memory().total < 20 * 1024**3:
        pytest.skip("two nodes with two rollout engines need 20 GiB of RAM")
    run = train("grpo", "nodes", "--smoke", "--nodes", "2", "--gpus", "1", **cluster).check()
    assert sorted(step for step in run.metrics if step) == [1, 2]
    assert len(list(run.checkpoints.glob("global_step_2/actor/model_world_size_2_rank_*.pt"))) == 2
    status = subprocess.run(
        [str(Path(sys.executable).parent / "ray"), "status", "--address", cluster["RAY_ADDRESS"]],
        env={**os.environ, **cluster},
        capture_output=True,
        text=True,
        check=False,
    )
    assert status.returncode == 0, "the run ended a cluster that it had not started"
