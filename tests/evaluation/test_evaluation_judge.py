"""`--reward judge:CONFIG.yaml`: a real HTTP judge scores the answers; a failed judgement is its sample's error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from judge.judge_server import MODEL, Act, Seen, error, score, serving

from .conftest import rows_of


def test_judge_scores_answers_and_a_failure_stays_with_its_sample(
    evaluate: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", "sk-test")

    def act(seen: Seen) -> Act:
        return error(400) if seen.reference == "4" else score(10 if int(seen.reference) % 2 else 2)

    with serving(act) as server:
        settings = {
            "provider": "custom",
            "model": MODEL,
            "base_url": server.url,
            "api_key_env": "TEST_JUDGE_KEY",
        }
        config = tmp_path / "judge.yaml"
        config.write_text(yaml.safe_dump({**settings, "timeout": 5, "cache": "off"}))
        code = evaluate(reward=f"judge:{config}", output_file=tmp_path / "r.json")
    assert code == 1
    rows = rows_of(tmp_path / "r.jsonl")
    assert [row["right"] for row in rows] == [bool(i % 2) for i in range(12)]
    assert "400" in rows[4]["reward_error"] and rows[4]["score"] == 0
    assert rows[3]["parts"]["judge_reason"] == "because"
    assert all(seen.question.startswith("x") for seen in server.seen)
    figures = json.loads((tmp_path / "r.json").read_text())["run"]["figures"]
    assert figures["reward errors"]["value"] == pytest.approx(1 / 12)
    assert "sk-test" not in (tmp_path / "r.json").read_text() + (tmp_path / "r.run.json").read_text()
