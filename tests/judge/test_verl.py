"""The judge as verl's reward: verl's own manager class and data, groups, and the run's files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager

from common.judge.metrics import read_metrics
from common.reward_functions.records import read_lines

from .judge_server import Act, Seen, error, score

ROOT = Path(__file__).resolve().parents[2]
SCORES = {"0": 2, "1": 9, "2": 4, "3": 7}


class Tokenizer:
    """Only what the naive manager calls: token ids are the answer."""

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return " ".join(str(int(i)) for i in ids)


def manager(config: str, run_dir: Path, n: int = 4, workers: int = 1) -> Any:
    """What a RewardLoopWorker builds from the launcher's keys."""
    kwargs = {
        "reward_path": str(ROOT / "ppo/api_reward.py"),
        "reward_name": "compute_score",
        "reward_kwargs": {"config": config, "run_dir": str(run_dir)},
        "parts_dir": str(run_dir),
    }
    return load_reward_manager(
        OmegaConf.create(
            {
                "reward": {
                    "num_workers": workers,
                    "custom_reward_function": {
                        "path": str(ROOT / "common/reward_functions/verl_entry.py"),
                        "name": "compute_score",
                        "reward_kwargs": kwargs,
                    },
                    "reward_manager": {
                        "source": "importlib",
                        "name": "JudgeRewardManager",
                        "module": {"path": "pkg://common.judge.verl_manager"},
                    },
                },
                "actor_rollout_ref": {"rollout": {"n": n, "val_kwargs": {"n": 1}}},
            }
        ),
        Tokenizer(),
    )


def sample(group: str, number: int, split: str = "train") -> DataProto:
    """One answer in the form of verl's agent loop (experimental/agent_loop/agent_loop.py: `_compute_score`)."""
    kwargs = {
        "raw_prompt": [{"role": "user", "content": f"question of {group}"}],
        "uid": group,
        "session_id": number,
        "data_source": "toy",
        "reward_model": {"ground_truth": "gold"},
        "extra_info": {"index": 3, "split": split},
    }
    return DataProto.from_dict(
        tensors={
            "responses": torch.tensor([[number]]),
            "attention_mask": torch.ones(1, 3, dtype=torch.int64),
        },
        non_tensors={
            **{key: np.array([value]) for key, value in kwargs.items()},
            "__num_turns__": np.array([2]),
            "tool_extra_fields": np.array([{"max_global_steps": 4}], dtype=object),
        },
    )


def run(made: Any, samples: list[DataProto]) -> list[dict[str, Any]]:
    async def all_at_once() -> list[dict[str, Any]]:
        return await asyncio.gather(*[made.run_single(data) for data in samples])

    return made.loop.run_until_complete(all_at_once())


def failing(*answers: str) -> Callable[[Seen], Act]:
    return lambda seen: error(500) if seen.answer in answers else score(SCORES[seen.answer])


def test_the_judge_sees_question_answer_and_reference(
    serve: Callable, config: Callable, tmp_path: Path
) -> None:
    server = serve(failing())
    (result,) = run(manager(config(server), tmp_path), [sample("g", 1)])
    seen = server.seen[0]
    assert (seen.question, seen.answer, seen.reference) == ("question of g", "1", "gold")
    assert result["reward_score"] == 0.9
    assert result["reward_extra_info"] == {
        "score": 0.9, "judge_failed": 0.0, "judge_cached": 0.0, "judge_reason": "because", "reward_error": 0.0
    }  # fmt: skip


@pytest.mark.parametrize("dead", ["0", "1", "3"])
def test_drop_gives_a_failed_sample_the_exact_mean_of_its_group(
    serve: Callable, config: Callable, tmp_path: Path, dead: str
) -> None:
    """Two groups side by side; the failed sample of the first gets the mean of the other three."""
    server = serve(
        lambda seen: (
            failing(dead)(seen) if seen.question == "question of a" else score(10 - SCORES[seen.answer])
        )
    )
    path = config(server, on_failure="drop", max_retries=0, max_failure_share=1.0)
    samples = [sample(group, number) for number in range(4) for group in ("a", "b")]
    results = run(manager(path, tmp_path), samples)
    first = [r["reward_score"] for r in results[::2]]
    second = [r["reward_score"] for r in results[1::2]]
    known = [value / 10 for answer, value in SCORES.items() if answer != dead]
    expected = [sum(known) / 3 if answer == dead else value / 10 for answer, value in SCORES.items()]
    assert first == pytest.approx(expected, abs=1e-12)
    assert second == pytest.approx([1 - value / 10 for value in SCORES.values()], abs=1e-12)
    assert [r["reward_extra_info"]["judge_failed"] for r in results[::2]] == [
        float(a == dead) for a in SCORES
    ]
    # A mean teaches nothing: GRPO's advantage of that sample is 0.
    assert first[int(dead)] - sum(first) / 4 == pytest.approx(0, abs=1e-12)


def test_drop_with_several_failures_in_a_group(serve: Callable, config: Callable, tmp_path: Path) -> None:
    path = config(serve(failing("0", "2", "3")), on_failure="drop", max_retries=0, max_failure_share=1.0)
    results = run(manager(path, tmp_path), [sample("a", n) for n in range(4)])
    assert [r["reward_score"] for r in results] == [0.9] * 4


def test_drop_without_a_judged_sibling_takes_recent_scores(
    serve: Callable, config: Callable, tmp_path: Path
) -> None:
    """A group of one (PPO with ROLLOUT_N=1) has no mean of its own."""
    path = config(serve(failing("2")), on_failure="drop", max_retries=0, max_failure_share=1.0)
    made = manager(path, tmp_path, n=1)
    results = run(made, [sample("a", 2), sample("b", 0)])
    assert [r["reward_score"] for r in results] == [0.2, 0.2]
    assert run(made, [sample("c", 1), sample("d", 0)])[0]["reward_score"] == 0.9
    assert run(made, [sample("e", 2)])[0]["reward_score"] == pytest.approx((0.2 + 0.9 + 0.2) / 3)


def test_drop_does_not_mix_validation_with_training(
    serve: Callable, config: Callable, tmp_path: Path
) -> None:
    path = config(serve(failing("2")), on_failure="drop", max_retries=0, max_failure_share=1.0)
    made = manager(path, tmp_path, n=1)
    run(made, [sample("a", 0), sample("v", 1, split="val")])
    results = run(made, [sample("b", 2), sample("w", 2, split="val")])
    assert [r["reward_score"] for r in results] == [0.2, 0.9]


def test_a_sibling_that_never_comes_is_waited_for_a_bounded_time(
    serve: Callable, config: Callable, tmp_path: Path
) -> None:
    path = config(serve(failing("0")), on_failure="drop", max_retries=0, max_failure_share=1.0, drop_wait=0.3)
    results = run(manager(path, tmp_path), [sample("a", n) for n in (0, 1)])  # two of four
    assert [r["reward_score"] for r in results] == [0.9, 0.9]


def test_parts_and_metrics_carry_step_and_split(serve: Callable, config: Callable, tmp_path: Path) -> None:
    made = manager(config(serve(failing())), tmp_path)
    run(made, [sample("a", 0), sample("a", 1), sample("v", 2, split="val")])
    from common.judge import service

    for judge in service._SERVICES.values():
        judge.close()
    lines = {(line["step"], line["split"]): line for line in read_metrics(tmp_path)}
    # Weights of step 4 answered: training on it is step 5, validation is step 4.
    assert {key: line["samples"] for key, line in lines.items()} == {(5, "train"): 2, (4, "val"): 1}
    parts = sorted((r["step"], r["uid"], r["parts"]["score"]) for r in read_lines(tmp_path))
    assert parts == [(4, "v", 0.4), (5, "a", 0.2), (5, "a", 0.9)]


def test_several_reward_workers_are_refused(serve: Callable, config: Callable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs reward.num_workers=1, not 8"):
        manager(config(serve(failing())), tmp_path, workers=8)


def test_a_row_without_a_question_is_refused(serve: Callable, config: Callable) -> None:
    from ppo.api_reward import compute_score

    with pytest.raises(Exception, match="the judge needs the question"):
        asyncio.run(compute_score("toy", "answer", "gold", {"index": 1}, config=config(serve(failing()))))


class Storage:
    """Stands in for TransferQueue: what verl's agent loop writes there."""

    def __init__(self) -> None:
        self.scores: dict[str, float] = {}
        self.status: dict[str, str] = {}

    async def async_kv_put(self, key: str, partition_id: str, tag: dict[str, str]) -> None:
        self.status[key] = tag["status"]

    async def async_kv_batch_put(self, keys: list[str], fields: Any, **_: Any) -> None:
        for number, key in enumerate(keys):
            self.scores[key] = float(fields["rm_scores"][number].sum())


@pytest.mark.slow
def test_verls_own_agent_loop_publishes_the_mean(
    serve: Callable, config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`_run_prompt` to TransferQueue is verl's code; only generation, Ray's call and the queue are replaced."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
    from verl.trainer.ppo.v1 import agent_loop_tq

    server = serve(failing("2"))
    made = manager(config(server, on_failure="drop", max_retries=0, max_failure_share=1.0), tmp_path)
    storage = Storage()
    monkeypatch.setattr(agent_loop_tq, "tq", storage)
    kind = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    worker = kind.__new__(kind)
    worker.config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": 4, "val_kwargs": {"n": 1}}}})
    worker.processor = worker.mm_processor_kwargs = None
    worker.distillation_enabled = False
    handle = SimpleNamespace(compute_score=SimpleNamespace(remote=made.run_single))
    worker.reward_loop_worker_handles = [handle]

    async def generated(
        _: Any, trajectory: dict[str, Any], trace: bool, session_id: int, **prompt: Any
    ) -> None:
        output = AgentLoopOutput(
            prompt_ids=[5, 6], response_ids=[session_id], response_mask=[1], metrics=AgentLoopMetrics(),
            num_turns=2, extra_fields={"max_global_steps": 4},
        )  # fmt: skip
        await worker._agent_loop_postprocess(output, trajectory["validate"], session_id=session_id, **prompt)

    monkeypatch.setattr(worker, "_run_agent_loop", generated, raising=False)
    prompt = {
        "uid": "u1",
        "raw_prompt": [{"role": "user", "content": "which?"}],
        "data_source": "toy",
        "reward_model": {"ground_truth": "gold"},
        "extra_info": {"split": "train"},
        "global_steps": 5,
    }
    made.loop.run_until_complete(worker._run_prompt(prompt, {}, {"validate": False}, trace=False))
    assert storage.status == {"u1": "finished"}
    assert [storage.scores[f"u1_{n}_0"] for n in range(4)] == pytest.approx([0.2, 0.9, 0.6, 0.7])
    assert {seen.question for seen in server.seen} == {"which?"}
