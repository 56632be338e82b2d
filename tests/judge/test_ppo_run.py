"""A real PPO run whose judge fails on purpose: question, groups and counts through verl's whole pipeline."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e.conftest import Trainer

from common.judge.metrics import read_metrics, totals
from common.reward_functions.records import read_lines

from .conftest import KEY
from .judge_server import Act, Seen, error, score

pytestmark = [pytest.mark.e2e, pytest.mark.matrix]


def mixed(seen: Seen) -> Act:
    """By the answer: one in four fails for good, one in four succeeds at the second attempt."""
    luck = zlib.crc32(f"{seen.question}/{seen.answer}".encode())
    if luck % 4 == 0 or (luck % 4 == 1 and seen.attempt == 1):
        return error(503)
    return score(luck // 4 % 11)


def test_ppo_with_a_judge_that_fails_at_times(serve: Callable, config: Callable, tmp_path: Path) -> None:
    server = serve(mixed)
    path = config(server, on_failure="drop", max_retries=1, max_failure_share=1.0)
    train = Trainer(tmp_path / "outputs", tmp_path / "console.log")
    knobs = {"REWARD_SOURCE": "api", "API_REWARD_CONFIG": path, "ROLLOUT_N": "4", "TRAIN_BATCH_SIZE": "4"}
    run = train("ppo", "judged", "--smoke", "--device", "cpu", **knobs).check()

    questions = {seen.question for seen in server.seen}
    assert any(question.startswith("What is") for question in questions)
    groups = defaultdict(list)
    for record in read_lines(run.folder):
        if record["split"] == "train":
            groups[record["uid"]].append(record["parts"])
    assert len(groups) == 8
    filled = 0
    for parts in groups.values():
        assert len(parts) == 4
        judged = [part["score"] for part in parts if not part["judge_failed"]]
        for part in parts:
            if part["judge_failed"] and judged:
                filled += 1
                assert part["score"] == pytest.approx(sum(judged) / len(judged), abs=1e-12)
    assert filled > 0
    # What verl trained on is what the judge and the policy said.
    rolled = [
        json.loads(line)["score"] for n in (1, 2) for line in (run.folder / f"rollouts/{n}.jsonl").open()
    ]
    assert sorted(rolled) == pytest.approx(
        sorted(part["score"] for parts in groups.values() for part in parts)
    )

    counted = totals(run.folder)
    failed = sum(record["parts"]["judge_failed"] for record in read_lines(run.folder))
    assert counted["failures"] == failed
    assert counted["samples"] == len(list(read_lines(run.folder)))
    checks = 1  # the preflight's test call
    assert counted["calls"] == len(server.seen) - checks
    assert {line["step"] for line in read_metrics(run.folder) if line["split"] == "train"} == {1, 2}
    for file in [*run.folder.rglob("*"), tmp_path / "console.log"]:
        assert not file.is_file() or KEY not in file.read_bytes().decode("latin-1"), file
