"""Samples: reading dumps, grouping, filters, computed metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from monitor_fixtures import make_run, sample, write

from monitor import samples
from monitor.api import PanelApi
from monitor.samples import Filter, SampleError

Load = Callable[[Path], PanelApi]


def step_of(*rows: str) -> samples.StepSamples:
    return samples.read_samples("".join(rows).encode())


STEP = step_of(
    sample(1, "easy", 0, 1.0, "right one."), sample(1, "easy", 1, 1.0, "right two."),
    sample(1, "hard", 0, 0.0, "wrong."), sample(1, "hard", 1, 0.0, "wrong."),
    sample(1, "mixed", 0, 1.0, "yes " * 100 + "."), sample(1, "mixed", 1, 0.0, "no " * 100 + "and then"),
)  # fmt: skip


def test_answers_are_grouped_by_prompt_id() -> None:
    assert STEP.groups == ["easy", "hard", "mixed"]
    assert STEP.group_of.tolist() == [0, 0, 1, 1, 2, 2]
    assert STEP.group_mean.tolist() == [1.0, 0.0, 0.5]


def test_advantage_is_verls_group_advantage() -> None:
    expected = 0.5 / (np.std([1, 0], ddof=1) + 1e-6)
    assert STEP.advantages().tolist() == pytest.approx([0, 0, 0, 0, expected, -expected])


def test_without_uid_the_prompt_itself_groups() -> None:
    rows = [json.dumps({"input": p, "output": "x.", "score": 1}) + "\n" for p in ("a", "b", "a")]
    assert step_of(*rows).group_of.tolist() == [0, 1, 0]


def test_metrics_that_verl_does_not_log() -> None:
    got = samples.step_metrics(STEP)
    assert got["reward_mean"] == 0.5
    assert got["reward_std"] == pytest.approx(0.5)
    assert got["zero_advantage_share"] == pytest.approx(2 / 3)
    assert got["within_group_std"] == pytest.approx(np.sqrt(0.5) / 3)
    assert got["duplicate_share"] == pytest.approx(1 / 6)
    assert got["truncated_share"] == pytest.approx(1 / 6)
    assert got["reward_error_share"] == 0.0


def test_failed_rewards_are_counted() -> None:
    rows = [sample(1, "p", i, 0.0, reward_error=e) for i, e in enumerate([0.0, 1.0])]
    rows.append(json.dumps({"input": "p", "output": "o", "score": None}) + "\n")
    assert samples.step_metrics(step_of(*rows))["reward_error_share"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        (Filter(), [0, 1, 2, 3, 4, 5]),
        (Filter(low=0.5), [0, 1, 4]),
        (Filter(high=0.5), [2, 3, 5]),
        (Filter(shortest=100), [4, 5]),
        (Filter(longest=9), [2, 3]),
        (Filter(text="RIGHT"), [0, 1]),
        (Filter(text="hard"), [2, 3]),  # in the prompt
        (Filter(text=r"one|two", is_regex=True), [0, 1]),
        (Filter(text="one|two"), []),
        (Filter(outcome="right"), [0, 1]),
        (Filter(outcome="wrong"), [2, 3]),
        (Filter(outcome="mixed"), [4, 5]),
        (Filter(truncated=True), [5]),
        (Filter(prompt="easy"), [0, 1]),
        (Filter(outcome="mixed", low=1.0), [4]),
    ],
)
def test_filter(wanted: Filter, kept: list[int]) -> None:
    assert samples.matching(STEP, wanted).tolist() == kept


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Filter(text="(", is_regex=True), "not a regular expression"),
        (Filter(outcome="odd"), "unknown outcome"),
    ],
)
def test_bad_filter_is_one_line(wanted: Filter, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        samples.matching(STEP, wanted)


def test_catastrophic_pattern_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "PATTERN_SECONDS", 0.2)
    step = step_of(sample(1, "p", 0, 1.0, "a" * 5000 + "b"))
    with pytest.raises(SampleError, match="too long"):
        samples.matching(step, Filter(text=r"(a|aa)+$", is_regex=True))


def test_half_written_and_broken_rows() -> None:
    step = step_of(sample(1, "p", 0, 1.0), "broken\n", "[1]\n", '{"input": "cut')
    assert len(step.samples) == 1
    assert step.bad_lines == 2


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"truncated": True}, True), ({"finish_reason": "length"}, True), ({"finish_reason": "stop"}, False),
        ({"output": "x" * 300}, True), ({"output": "x" * 300 + "."}, False), ({"output": "短" * 300 + "。"}, False),
        ({"output": "short"}, False), ({"output": ""}, False),
    ],
)  # fmt: skip
def test_truncation(row: dict[str, Any], expected: bool) -> None:
    assert samples.looks_truncated(row, row.get("output", "")) is expected


def test_messages_as_prompt_and_odd_types() -> None:
    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "response": 5,
        "ground_truth": {"a": 1},
        "score": "high",
    }
    read = samples.read_sample(row)
    assert read.prompt == "[user]\nhi"
    assert read.output == "5"
    assert read.truth == '{"a":1}'
    assert np.isnan(read.score)


def run_with_samples(folder: Path) -> None:
    make_run(folder)
    for step in (1, 5, 9):
        rows = [
            sample(step, f"p{p}", i, float(i == 0 and p < 2), f"answer {step} {p} {i}.")
            for p in range(12)
            for i in range(4)
        ]
        write(folder / "rollouts" / f"{step}.jsonl", "".join(rows))
    write(folder / "validation" / "10.jsonl", sample(10, "v", 0, 0.3, reward=0.8, acc=1.0))


def test_page_of_groups(tmp_path: Path, loaded: Load) -> None:
    run_with_samples(tmp_path / "r")
    api = loaded(tmp_path)
    page = api.samples.page({"run": "r"})
    assert (page["kinds"], page["steps"], page["step"]) == (["rollouts", "validation"], [1, 5, 9], 9)
    assert (page["total"], page["group_count"], page["pages"], len(page["groups"])) == (48, 12, 2, 8)
    assert [answer["final"] for answer in page["groups"][0]["answers"]] == [1.0, 0.0, 0.0, 0.0]
    nearest = api.samples.page({"run": "r", "step": 6, "page": 1, "sort": "worst"})
    assert (nearest["step"], len(nearest["groups"])) == (5, 4)
    assert nearest["groups"][-1]["mean"] == 0.25
    validation = api.samples.page({"run": "r", "kind": "validation"})["groups"][0]["answers"][0]
    assert (validation["score"], validation["final"], validation["parts"]["acc"]) == (0.3, 0.8, "1")


def test_histogram_and_whole_text_and_history(tmp_path: Path, loaded: Load) -> None:
    run_with_samples(tmp_path / "r")
    api = loaded(tmp_path)
    histogram = api.samples.page({"run": "r"})["histogram"]
    assert sum(histogram["counts"]) == 48
    assert (
        api.samples.sample_text({"run": "r", "kind": "rollouts", "step": 5, "i": 1})["text"]
        == "answer 5 0 1."
    )
    rows = api.samples.history({"run": "r", "kind": "rollouts", "step": 5, "i": 0})["rows"]
    assert [(row["step"], row["mean"], row["count"]) for row in rows] == [
        (1, 0.25, 4),
        (5, 0.25, 4),
        (9, 0.25, 4),
    ]


def test_computed_metrics_are_curves(tmp_path: Path, loaded: Load) -> None:
    run_with_samples(tmp_path / "r")
    run = loaded(tmp_path).collector.runs()[0]
    assert run.series("samples/zero_advantage_share").steps.tolist() == [1, 5, 9]
    assert run.series("samples/zero_advantage_share").values.tolist() == pytest.approx([10 / 12] * 3)
    assert run.series("validation/part/acc").values.tolist() == [1.0]


def test_rewritten_and_new_dumps_are_noticed(tmp_path: Path, loaded: Load) -> None:
    run_with_samples(tmp_path / "r")
    api = loaded(tmp_path)
    run = api.collector.runs()[0]
    write(tmp_path / "r" / "rollouts" / "9.jsonl", sample(9, "p", 0, 1.0) + sample(9, "p", 1, 1.0))
    write(tmp_path / "r" / "rollouts" / "13.jsonl", sample(13, "p", 0, 0.0))
    run.samples.advance(lambda: True)
    assert run.series("samples/reward_mean").steps.tolist() == [1, 5, 9, 13]
    assert run.series("samples/reward_mean").values[2:].tolist() == [1.0, 0.0]


def test_reward_parts_are_joined_by_answer(tmp_path: Path, loaded: Load) -> None:
    run_with_samples(tmp_path / "r")
    rows = [
        {"step": step, "split": "train", "uid": None, "answer_crc32": crc32(f"answer {step} {p} {i}.".encode()),
         "parts": {"score": 0.0, "format": float(i), "reward_error": 0.0}}
        for step in (1, 5, 9) for p in range(12) for i in range(4)
    ]  # fmt: skip
    write(
        tmp_path / "r" / "reward_parts-h-1.jsonl",
        "".join(json.dumps(row) + "\n" for row in rows) + "broken\n{",
    )
    api = loaded(tmp_path)
    answers = api.samples.page({"run": "r", "step": 5})["groups"][0]["answers"]
    assert [answer["parts"]["format"] for answer in answers] == ["0", "1", "2", "3"]
    assert api.collector.runs()[0].series("samples/part/format").values.tolist() == [1.5, 1.5, 1.5]


def test_results_of_test_sh_open_as_samples(tmp_path: Path, loaded: Load) -> None:
    own = {"item": 0, "key": "3f8b", "finish_reason": "length", "tokens": 10, "error": "", "reward_error": "",
           "groups": {}, "right": True, "parts": {"acc": 1.0}}  # fmt: skip
    rows = [sample(0, "q", i, 1.0, sample=i, **own) for i in range(3)]
    write(tmp_path / "eval" / "results.jsonl", "".join(rows))
    api = loaded(tmp_path)
    (run,) = api.collector.runs()
    assert api.entry(run, 0.0)["state"] == "samples"
    page = api.samples.page({"run": run.id})
    assert (page["kind"], page["total"]) == ("results", 3)
    assert len(page["groups"]) == 1
    first = page["groups"][0]["answers"][0]
    assert first["truncated"]
    assert first["parts"] == {"tokens": "10", "right": "True", "acc": "1"}
    assert page["metrics"]["reward_error_share"] == 0.0


def test_huge_dump_is_refused_in_words(tmp_path: Path, loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_FILE_BYTES", 1 << 10)
    run_with_samples(tmp_path / "r")
    reply = loaded(tmp_path).functions()["samples"]({"run": "r"})
    assert "9.jsonl has 0 MB; the panel opens dumps up to" in reply["error"]


def test_linked_dump_is_not_opened(tmp_path: Path, loaded: Load) -> None:
    secret = write(tmp_path / "secret.jsonl", sample(3, "private", 0, 1.0))
    run_with_samples(tmp_path / "logs" / "r")
    (tmp_path / "logs" / "r" / "rollouts" / "3.jsonl").symlink_to(secret)
    api = loaded(tmp_path / "logs")
    assert api.samples.page({"run": "r"})["steps"] == [1, 5, 9]
    assert "private" not in json.dumps(api.samples.page({"run": "r", "step": 3}))
