"""Whole evaluations of a tiny model: results, going on, scoring again, comparing, sweeping, the chat."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pytest
from tiny_model import tiny_model

from common.launcher.errors import UserError

from .conftest import rows_of

ROOT = Path(__file__).resolve().parents[2]


def program(
    *words: str, cache: Path, stdin: str | None = None, **more: object
) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "VERL_TRAINING_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "common.test_model", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, input=stdin, check=False, **more)


def test_results_summary_and_run_file(
    evaluate: Callable[..., int], reward: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    assert evaluate(reward=reward) == 0
    said = capfd.readouterr()
    assert "template default" in said.err and "sampling temperature 0, top_p 1" in said.err
    assert "right            0.5000" in said.out
    rows = rows_of(tmp_path / "results.jsonl")
    assert [row["item"] for row in rows] == list(range(12))
    assert {"input", "output", "gts", "score", "step", "uid"} <= rows[0].keys()
    assert rows[3]["row"]["id"] == "r3" and rows[3]["parts"]["acc"] == 1.0
    book = openpyxl.load_workbook(tmp_path / "results.xlsx")
    assert book.sheetnames == ["Summary", "Results", "Groups", "Scores"]
    summary = {line[0]: line[1] for line in book["Summary"].iter_rows(values_only=True) if line[0]}
    assert summary["right"] == 0.5 and summary["items"] == 12 and summary["template"] == "default"
    assert summary["sampling: temperature"] == 0 and "versions: torch" in summary
    groups = {(line[0], line[1]): line[2] for line in book["Groups"].iter_rows(min_row=2, values_only=True)}
    assert groups == {("level", "easy"): 8, ("level", "hard"): 4}
    titles = [cell.value for cell in book["Results"][1]]
    assert titles[:6] == ["item", "sample", "prompt", "output", "ground_truth", "score"] and "id" in titles
    run = json.loads((tmp_path / "results.run.json").read_text())
    assert run["state"] == "finished" and run["figures"]["right"]["value"] == 0.5
    assert not (tmp_path / "results.scores.jsonl").exists()


def test_a_rerun_generates_only_what_is_missing(
    evaluate: Callable[..., int], reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.evaluation import batch

    assert evaluate(reward=reward) == 0
    whole = (tmp_path / "results.jsonl").read_bytes()
    asked: list[int] = []
    drain = batch.drain

    def counting(job, backend, requests, *rest):
        asked.extend(request.item for request in requests)
        return drain(job, backend, requests, *rest)

    monkeypatch.setattr(batch, "drain", counting)
    assert evaluate(reward=reward) == 0
    assert asked == []
    lines = whole.splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(lines[5] + lines[0] + lines[9][:20])
    assert evaluate(reward=reward) == 0
    assert asked == [i for i in range(12) if i not in (0, 5)]
    assert (tmp_path / "results.jsonl").read_bytes() == whole
    asked.clear()
    assert evaluate("--overwrite", reward=reward) == 0
    assert len(asked) == 12


def test_other_settings_or_data_never_mix(evaluate: Callable[..., int], reward: Path, data: Path) -> None:
    assert evaluate(reward=reward) == 0
    with pytest.raises(UserError, match=r"other settings \(max_new_tokens 6 there, 7 now\)"):
        evaluate(reward=reward, max_new_tokens=7)
    with pytest.raises(UserError, match="beyond this run's items"):
        evaluate(reward=reward, limit=5)
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(UserError, match="item 0 is about another row"):
        evaluate(reward=reward)


def test_samples_votes_and_growing_n(evaluate: Callable[..., int], reward: Path, tmp_path: Path) -> None:
    flags = {"reward": reward, "temperature": 1, "output_file": tmp_path / "r.json"}
    assert evaluate(n=2, **flags) == 0
    first = {row["uid"]: row["output"] for row in rows_of(tmp_path / "r.jsonl")}
    assert evaluate(n=4, **flags) == 0
    rows = rows_of(tmp_path / "r.jsonl")
    assert len(rows) == 48 and first.items() <= {row["uid"]: row["output"] for row in rows}.items()
    figures = json.loads((tmp_path / "r.json").read_text())["run"]["figures"]
    assert {"score avg@4", "right avg@4", "pass@2", "pass@4", "maj@4", "all 4 right"} <= figures.keys()
    assert figures["pass@4"]["value"] == 0.5


def test_failures_stay_with_their_sample_and_the_exit_code_tells(
    evaluate: Callable[..., int], reward: Path, tmp_path: Path, data: Path
) -> None:
    with data.open("a") as handle:
        handle.write(json.dumps({"question": "", "answer": "1"}) + "\n")
        handle.write(json.dumps({"question": "y" * 900, "answer": "13"}) + "\n")
    assert evaluate(reward=f"{reward}:broken") == 1
    rows = rows_of(tmp_path / "results.jsonl")
    assert "the prompt has" in rows[13]["error"] and rows[12]["error"].startswith("row 13: question")
    figures = json.loads((tmp_path / "results.run.json").read_text())["figures"]
    assert figures["right"]["value"] == pytest.approx(11 / 14)  # the denominator is every row
    assert figures["errors"]["value"] == pytest.approx(2 / 14)
    assert figures["reward errors"]["value"] == pytest.approx(1 / 14)
    book = openpyxl.load_workbook(tmp_path / "results.xlsx")
    assert {line[1] for line in book["Errors"].iter_rows(min_row=2, values_only=True)} >= {
        "ValueError: no five"
    }


def test_rescore_and_export_need_no_model_and_no_data(
    evaluate: Callable[..., int], reward: Path, tmp_path: Path, data: Path
) -> None:
    assert evaluate(reward="none") == 0
    before = rows_of(tmp_path / "results.jsonl")
    assert before[0]["score"] is None
    data.unlink()
    assert evaluate("--rescore", reward=reward, model_path="") == 0
    after = rows_of(tmp_path / "results.jsonl")
    assert [row["output"] for row in after] == [row["output"] for row in before]
    assert [row["right"] for row in after] == [bool(i % 2) for i in range(12)]
    (tmp_path / "results.xlsx").unlink()
    assert evaluate("--export-only", model_path="") == 0
    summary = openpyxl.load_workbook(tmp_path / "results.xlsx")["Summary"]
    assert {line[0]: line[1] for line in summary.iter_rows(values_only=True)}["right"] == 0.5


# Ends its own process while line N of the record is due: before, amid or after writing it.
ENDING = """
import os, signal, sys
from common.evaluation import record
from common.test_model import main

number, phase, sign = int(sys.argv.pop(1)), sys.argv.pop(1), int(sys.argv.pop(1))
append = record.Record.append

def ending(self, row):
    ending.count += 1
    if ending.count < number:
        return append(self, row)
    if phase == "amid":
        self._handle.write(record.json_line(row)[:40])
        self._handle.flush()
    elif phase == "after":
        append(self, row)
    os.kill(os.getpid(), sign)

ending.count = 0
record.Record.append = ending
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sign", "phase"), [(signal.SIGKILL, "before"), (signal.SIGKILL, "amid"), (signal.SIGTERM, "after")]
)
def test_ended_at_a_random_answer_and_run_again_gives_the_same_file(
    evaluate: Callable[..., int], model: Path, data: Path, reward: Path, tmp_path: Path, sign: int, phase: str
) -> None:
    assert evaluate(reward=reward, output_file=tmp_path / "whole.jsonl") == 0
    flags = ["--model_path", model, "--batch", "--input_file", data, "--reward", reward, "--temperature", "0"]
    flags += ["--max_new_tokens", "6", "--output_file", tmp_path / "killed.jsonl"]
    number = random.SystemRandom().randint(2, 11)
    command = [sys.executable, "-c", ENDING, str(number), phase, str(sign), *map(str, flags)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    finished = number if phase == "after" else number - 1
    if sign == signal.SIGTERM:
        assert ended.returncode == 130
        assert f"stopped: {finished} of 12 answers are in" in ended.stderr
    else:
        assert ended.returncode == -sign
    record = tmp_path / "killed.jsonl"
    assert record.read_bytes().count(b"\n") == finished
    assert evaluate(reward=reward, output_file=record) == 0
    assert json.loads((tmp_path / "killed.run.json").read_text())["generation"]["answers"] == 12 - finished
    assert record.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.slow
def test_compare_models_and_results(
    evaluate: Callable[..., int], model: Path, data: Path, reward: Path, tmp_path: Path
) -> None:
    other = tiny_model(tmp_path / "other", seed=5)
    judge = tmp_path / "judge.py"
    judge.write_text(
        "def compute_score(solution_str, ground_truth):\n    return float(sum(map(ord, solution_str)) % 2)\n"
    )
    flags = ["--input_file", str(data), "--temperature", "0", "--max_new_tokens", "6", "--reward", str(judge)]
    done = program(
        "--compare", str(model), str(other), *flags, "--output_file", str(tmp_path / "c.xlsx"), cache=tmp_path
    )
    assert done.returncode == 0, done.stderr
    records = sorted(tmp_path.glob("c.*.jsonl"))
    assert len(records) == 2
    right = {path.name: [row["right"] for row in rows_of(path)] for path in records}
    (base,) = [name for name in right if "other" not in name]
    (new,) = [name for name in right if "other" in name]
    fixed = sum(b and not a for a, b in zip(right[base], right[new], strict=True))
    assert f"on 12 items: {fixed} fixed" in done.stdout
    book = openpyxl.load_workbook(tmp_path / "c.xlsx")
    assert book.sheetnames == ["Summary", "Compare"] and book["Compare"].max_row == 13
    outcomes = [line[2] for line in book["Compare"].iter_rows(min_row=2, values_only=True)]
    assert outcomes.count("fixed") == fixed
    again = program(
        "--compare",
        str(records[0]),
        str(records[1]),
        "--output_file",
        str(tmp_path / "d.json"),
        cache=tmp_path,
    )
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "d.json").read_text())[0]["items"] == 12
    assert evaluate(reward="none") == 0
    mixed = program("--compare", str(records[0]), str(tmp_path / "results.jsonl"), cache=tmp_path)
    assert mixed.returncode == 2 and "has no scores" in mixed.stderr


@pytest.mark.slow
def test_sweep_of_a_run(model: Path, data: Path, reward: Path, tmp_path: Path) -> None:
    import shutil

    for step in (5, 10):
        shutil.copytree(model, tmp_path / f"checkpoints/grpo/run/global_step_{step}/actor/huggingface")
    (tmp_path / "checkpoints/grpo/run/latest_checkpointed_iteration.txt").write_text("10")
    flags = [
        "--output_dir",
        str(tmp_path),
        "--input_file",
        str(data),
        "--temperature",
        "0",
        "--max_new_tokens",
        "4",
    ]
    done = program(
        "--sweep",
        "run",
        *flags,
        "--reward",
        str(reward),
        "--output_file",
        str(tmp_path / "s.xlsx"),
        cache=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    sheet = openpyxl.load_workbook(tmp_path / "s.xlsx")["Sweep"]
    assert [line[0] for line in sheet.iter_rows(min_row=2, max_row=3, values_only=True)] == [5, 10]


@pytest.mark.slow
def test_chat(model: Path, tmp_path: Path) -> None:
    lines = [
        "hello",
        "/temp 0",
        "/max 5",
        "/system be kind",
        '"""',
        "two",
        'lines"""',
        "/temp x",
        "/nope",
        f"/save {tmp_path}/c.json",
    ]
    lines += [
        "/template llama3",
        "/reset",
        "again \\",
        "and again",
        f"/save {tmp_path}/d.json",
        "/exit",
        "never",
    ]
    done = program(
        "--model_path", str(model), "--max_new_tokens", "8", cache=tmp_path, stdin="\n".join(lines)
    )
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "c.json").read_text())["messages"]
    assert [turn["role"] for turn in saved] == ["system", "user", "assistant", "user", "assistant"]
    assert saved[3]["content"] == "two\nlines" and saved[0]["content"] == "be kind"
    after = json.loads((tmp_path / "d.json").read_text())["messages"]
    assert [turn["content"] for turn in after][:2] == ["be kind", "again \nand again"]
    for mistake in ("/temp needs a number", "unknown command /nope", "--template llama3"):
        assert mistake in done.stderr


def test_mistakes_are_one_line_without_a_traceback(tmp_path: Path) -> None:
    done = program(
        "--model_path",
        str(tmp_path / "none"),
        "--batch",
        "--input_file",
        str(tmp_path / "x.json"),
        cache=tmp_path,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --input_file")
