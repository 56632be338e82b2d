"""Made-up runs in verl's own formats, shared by the monitor's tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def jsonl(records: list[tuple[int, dict[str, Any]]]) -> str:
    """verl's file logger: one object per line."""
    return "".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in records)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def make_run(
    folder: Path, steps: int = 20, state: str = "finished", total: int | None = None, **manifest: Any
) -> Path:
    """One of our run folders with ``steps`` steps of GRPO-like metrics."""
    records: list[tuple[int, dict[str, Any]]] = [(0, {"val-core/gsm8k/acc/mean@1": 0.1})]
    for step in range(1, steps + 1):
        data = {
            "actor/pg_loss": 0.01 * (step % 3), "actor/kl_loss": 0.001 * step,
            "actor/entropy": 1.0 - 0.001 * step,
            "critic/score/mean": step / steps, "perf/time_per_step": 2.0, "perf/total_num_tokens": 1000.0,
            "actor/grad_norm": 0.5, "response_length/mean": 100.0 + step,
        }  # fmt: skip
        if step % 10 == 0:
            data["val-core/gsm8k/acc/mean@1"] = 0.1 + 0.5 * step / steps
        records.append((step, data))
    write(folder / "metrics-1.jsonl", jsonl(records))
    run = {
        "schema": 1, "method": "grpo", "run": folder.name, "model": "Qwen/Qwen3-8B", "state": state,
        "created": "2026-01-01T00:00:00+00:00", "total_steps": total or steps, "pid": 1, "host": "elsewhere",
        "knobs": {"LEARNING_RATE": "1e-6", "OPENAI_API_KEY": "sk-verysecret"},
        "command": ["python", "-m", "verl.trainer.main", "algorithm.adv_estimator=grpo", "x.api_key=hush"],
        "attempts": [{"n": 1, "metrics": "metrics-1.jsonl", "console": "console-1.log", "exit_code": 0}],
    } | manifest  # fmt: skip
    write(folder / "run.json", json.dumps(run))
    return folder


def sample(step: int, prompt: str, index: int, score: float, output: str = "the answer.", **more: Any) -> str:
    """One row of verl's rollout dump."""
    row = {"input": prompt, "output": output, "gts": "7", "score": score, "step": step,
           "uid": f"{prompt}_0_{index}"}  # fmt: skip
    return json.dumps(row | more, ensure_ascii=False) + "\n"
