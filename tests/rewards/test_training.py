"""A reward in a run: parts on disk, errors kept, the run stopped, the same keys for every sample."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from common.reward_functions import RewardError, bind, records
from common.reward_functions.training import TrainingReward, step_of

ENTRY = Path(__file__).parents[2] / "common" / "reward_functions" / "verl_entry.py"
USER = """
import asyncio
def plain(solution_str, ground_truth):
    return {"score": float(solution_str == ground_truth), "size": len(solution_str)}
def bad(solution_str):
    raise KeyError("no field 'difficulty'")
def sometimes(solution_str):
    if solution_str == "boom":
        raise ValueError("boom")
    return {"score": 1.0, "extra": 2.0} if solution_str == "more" else {"score": 1.0}
async def slow(solution_str, delay=0.2):
    await asyncio.sleep(delay)
    return 1.0
"""


@pytest.fixture
def entry() -> ModuleType:
    """verl_entry.py loaded by its path, as verl does it."""
    spec = importlib.util.spec_from_file_location("custom_module_x", ENTRY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def user(tmp_path: Path) -> str:
    """A user's reward file."""
    path = tmp_path / "user.py"
    path.write_text(USER)
    return str(path)


def call(entry: ModuleType, answer: str, extra: dict[str, Any] | None = None, **how: Any) -> dict[str, Any]:
    """One sample through the async entry."""
    return asyncio.run(
        entry.compute_score("toy", answer, "a", extra if extra is not None else {"index": 1}, **how)
    )


def test_parts_of_every_sample_are_written(entry: ModuleType, user: str, tmp_path: Path) -> None:
    how = {"reward_path": user, "reward_name": "plain", "parts_dir": str(tmp_path / "parts")}
    extra = {"index": 5, "split": "train", "max_global_steps": 3, "uid": "u1"}
    assert call(entry, "a", extra, **how) == {"score": 1.0, "size": 1, "reward_error": 0.0}
    assert entry.compute_score_sync("toy", "ab", "a", extra, **how)["score"] == 0.0
    lines = list(records.read_lines(tmp_path / "parts"))
    assert [line["parts"] for line in lines] == [
        {"score": 1.0, "size": 1, "reward_error": 0.0},
        {"score": 0.0, "size": 2, "reward_error": 0.0},
    ]
    assert lines[0]["step"] == 4
    assert (lines[0]["split"], lines[0]["uid"], lines[0]["index"], lines[0]["data_source"]) == (
        "train",
        "u1",
        5,
        "toy",
    )
    (name,) = [path.name for path in (tmp_path / "parts").glob("reward_parts-*.jsonl")]
    assert name.endswith(f"-{os.getpid()}.jsonl")
    (row,) = records.summarise(tmp_path / "parts")
    assert row == {"step": 4, "split": "train", "samples": 2, "reward_errors": 0, "score": 0.5, "size": 1.5}


def test_a_bare_number_keeps_verls_meaning(entry: ModuleType, user: str) -> None:
    assert call(entry, "a", reward_path=user, reward_name="slow", reward_kwargs={"delay": 0}) == {
        "score": 1.0,
        "acc": 1.0,
        "reward_error": 0.0,
    }


def test_async_rewards_run_side_by_side(entry: ModuleType, user: str) -> None:
    async def many() -> list[Any]:
        one = [
            entry.compute_score("t", "a", "a", {}, reward_path=user, reward_name="slow") for _ in range(50)
        ]
        return list(await asyncio.gather(*one))

    begin = time.monotonic()
    assert len(asyncio.run(many())) == 50
    assert time.monotonic() - begin < 5  # one after the other would be 10 s
    assert entry.compute_score_sync("t", "a", "a", {}, reward_path=user, reward_name="slow")["score"] == 1.0


def test_policy_raise_keeps_the_sample_and_stops_every_worker(
    entry: ModuleType, user: str, tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    with pytest.raises(RewardError, match=r"user.py:bad raised KeyError: \"no field 'difficulty'\""):
        call(entry, "hello", reward_path=user, reward_name="bad", parts_dir=str(parts))
    marker = records.read_marker(parts)
    assert marker is not None
    assert "no field 'difficulty'" in marker["message"]
    assert marker["sample"]["solution_str"] == "hello"
    assert "in bad" in marker["traceback"]
    (line,) = records.read_lines(parts, records.ERRORS)
    assert line["sample"]["ground_truth"] == "a"
    other = TrainingReward(bind("other", lambda solution_str: 1.0), "raise", parts)
    with pytest.raises(RewardError, match=r"the run is stopping: user\.py:bad raised KeyError"):
        other.score({"solution_str": "x"})


def test_policy_zero_counts_and_goes_on(entry: ModuleType, user: str, tmp_path: Path) -> None:
    how = {
        "reward_path": user,
        "reward_name": "sometimes",
        "parts_dir": str(tmp_path),
        "error_policy": "zero",
    }
    assert call(entry, "boom", **how) == {"score": 0.0, "acc": 0.0, "reward_error": 1.0}
    assert call(entry, "fine", **how) == {"score": 1.0, "reward_error": 0.0}
    assert call(entry, "boom", **how) == {"score": 0.0, "reward_error": 1.0}
    assert records.read_marker(tmp_path) is None
    assert [line["message"] for line in records.read_lines(tmp_path, records.ERRORS)] == [
        "user.py:sometimes raised ValueError: boom"
    ] * 2
    assert records.summarise(tmp_path)[0]["reward_errors"] == 2


def test_a_part_of_some_samples_only_is_said_once_and_kept_on_disk(
    entry: ModuleType, user: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = {"reward_path": user, "reward_name": "sometimes", "parts_dir": str(tmp_path)}
    keys = [set(call(entry, text, **how)) for text in ("fine", "more", "more", "fine")]
    assert keys == [{"score", "reward_error"}] * 4
    assert capsys.readouterr().err.count("returned 'extra' for some samples only") == 1
    assert sum("extra" in line["parts"] for line in records.read_lines(tmp_path)) == 2


def test_missing_parts_are_filled_and_processes_agree(entry: ModuleType, user: str, tmp_path: Path) -> None:
    how = {"reward_path": user, "reward_name": "sometimes", "parts_dir": str(tmp_path)}
    assert call(entry, "more", **how) == {"score": 1.0, "extra": 2.0, "reward_error": 0.0}
    assert call(entry, "fine", **how) == {"score": 1.0, "extra": 0.0, "reward_error": 0.0}
    second = TrainingReward(bind("user.py:sometimes", lambda solution_str: {"score": 1.0}), "raise", tmp_path)
    assert second.score({"solution_str": "fine"}) == {"score": 1.0, "extra": 0.0, "reward_error": 0.0}


def test_a_wrong_reward_in_a_run_leaves_the_marker_too(entry: ModuleType, user: str, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="has no function"):
        call(entry, "x", reward_path=user, reward_name="nothing", parts_dir=str(tmp_path))
    marker = records.read_marker(tmp_path)
    assert marker is not None
    assert "has no function 'nothing'" in marker["message"]
    with pytest.raises(RewardError, match="error policy 'ignore' is not one of raise, zero"):
        call(entry, "x", reward_path=user, reward_name="plain", error_policy="ignore")


def test_omegaconf_knobs_become_plain(entry: ModuleType, tmp_path: Path) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    knobs = omegaconf.OmegaConf.create({"parts": [{"reward": "math", "weight": 2.0}], "normalise": True})
    result = call(entry, r"\boxed{a}", reward_name="common:composite", reward_kwargs=knobs)
    assert result["score"] == 1.0
    assert result["math"] == 1.0
    as_text = '{"parts": [{"reward": "math", "weight": 2.0}]}'
    assert call(entry, r"\boxed{a}", reward_name="common:composite", reward_kwargs=as_text)["score"] == 2.0
    assert call(entry, r"\boxed{a}", reward_name="common:math", reward_kwargs="")["score"] == 1.0


def test_many_threads_write_whole_lines(entry: ModuleType, user: str, tmp_path: Path) -> None:
    how = {"reward_path": user, "reward_name": "plain", "parts_dir": str(tmp_path)}
    with ThreadPoolExecutor(8) as threads:
        list(
            threads.map(
                lambda n: entry.compute_score_sync("t", "a" * n, "a", {"index": n}, **how), range(400)
            )
        )
    assert sorted(line["index"] for line in records.read_lines(tmp_path)) == list(range(400))


def test_texts_that_are_no_unicode_are_still_written(tmp_path: Path) -> None:
    reward = TrainingReward(bind("r", lambda solution_str: 1.0), "zero", tmp_path)
    reward.score({"solution_str": "\ud800", "data_source": "\ud800"})
    assert json.loads(next(tmp_path.glob("reward_parts*")).read_text())["parts"]["score"] == 1.0


def test_step_of_counts_the_step_that_trains_on_the_answer() -> None:
    assert step_of({"max_global_steps": 3}) == 4
    assert step_of({"max_global_steps": 3, "split": "val"}) == 3
    assert step_of({"global_steps": 7}) == 7
    assert step_of({}) is None
