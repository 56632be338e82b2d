"""The dry run: rewards that work pass, rewards that cannot tell gold from junk are named and exit 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.reward_functions import RewardError, load_reward
from common.reward_functions.__main__ import main
from common.reward_functions.trial import Row, dry_run, read_rows

ROWS = [Row("toy", str(n), {"index": n, "solution": f"it is {n}"}) for n in range(3, 43)]
SHARED = Path(__file__).parents[3] / "shared" / "data" / "gsm8k_train_2000.jsonl"


def write(path: Path, rows: list[Row], **more: Any) -> Path:
    """Rows in verl's schema as JSONL or parquet."""
    records = [
        {
            "data_source": row.data_source,
            "prompt": [{"role": "user", "content": "?"}],
            "reward_model": {"ground_truth": row.ground_truth, "style": "rule"},
            "extra_info": dict(row.extra_info),
            **more,
        }
        for row in rows
    ]
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json"])
def test_rows_are_read_from_every_format(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"data{suffix}", ROWS)
    assert read_rows(path, 1000) == ROWS
    assert read_rows(path, 3) == ROWS[:3]


def test_rows_without_truth_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"data_source": "a", "reward_model": {"ground_truth": 1}}\n{"data_source": "a"}\n')
    with pytest.raises(RewardError, match=r"row 2 has no reward_model\.ground_truth"):
        read_rows(path, 10)
    path.write_text('{"reward_model": {"ground_truth": 1}}\n')
    with pytest.raises(RewardError, match="row 1 has no data_source"):
        read_rows(path, 10)
    path.write_text("\n")
    with pytest.raises(RewardError, match="has no rows"):
        read_rows(path, 10)
    path.write_text("{\n")
    with pytest.raises(RewardError, match="is not valid JSON at line 1"):
        read_rows(path, 10)
    with pytest.raises(RewardError, match="does not exist"):
        read_rows(tmp_path / "gone.parquet", 10)


@pytest.mark.parametrize(
    "name", ["math", "gsm8k", "exact_match", "f1", "rouge_l", "similarity", "contains", "cosine_length"]
)
def test_good_rewards_pass(name: str) -> None:
    report = dry_run(load_reward(None, name), ROWS)
    assert report.problems == []
    assert report.means["gold"] == pytest.approx(1.0, abs=1e-3)
    assert report.gold_not_above_junk == 0.0
    assert report.errors == 0
    assert sum(report.histogram["gold"]) == len(ROWS)


def test_a_shaping_reward_alone_cannot_tell(tmp_path: Path) -> None:
    report = dry_run(load_reward(None, "think_answer_format"), ROWS)
    assert any("does not beat junk" in problem or "cannot tell" in problem for problem in report.problems)


def user_reward(tmp_path: Path, text: str) -> Any:
    """A user's reward from source text."""
    path = tmp_path / f"user_{abs(hash(text))}.py"
    path.write_text(text)
    return load_reward(str(path), "f")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def f(solution_str): return 0.0", "every answer scored 0: there is no signal to learn from"),
        ("def f(solution_str, ground_truth): return float(solution_str != ground_truth)",
         "every answer scored 1: there is no signal to learn from"),
        ("def f(solution_str): return 1 / len(solution_str)", "calls raised; first: ZeroDivisionError"),
        ("def f(solution_str, ground_truth):\n    r = {'score': float(solution_str == ground_truth)}\n"
         "    if r['score']: r['bonus'] = 1.0\n    return r", "keys differ between samples (bonus)"),
        ("def f(solution_str, extra_info): return extra_info['difficulty']", "KeyError: 'difficulty'"),
    ],
)  # fmt: skip
def test_bad_rewards_are_named(tmp_path: Path, text: str, problem: str) -> None:
    report = dry_run(user_reward(tmp_path, text), ROWS)
    assert any(problem in found for found in report.problems), report.problems


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("import re\ndef f(solution_str, ground_truth):\n    m = re.findall(r'#### (.*)', solution_str)\n"
         "    return float(bool(m) and m[-1] == ground_truth)", "#### gold"),
        ("import re\ndef f(solution_str, ground_truth):\n"
         "    m = re.findall('<answer>(.*)</answer>', solution_str)\n"
         "    return float('<think>' in solution_str and bool(m) and m[-1] == ground_truth)",
         "<answer>gold</answer>"),
        ("def f(solution_str, extra_info): return float(solution_str == extra_info['solution'])",
         "extra_info's own answer"),
        ("async def f(solution_str, ground_truth): return float(solution_str == ground_truth)",
         "the ground truth alone"),
    ],
)  # fmt: skip
def test_the_form_of_gold_answers_is_found(tmp_path: Path, text: str, form: str) -> None:
    report = dry_run(user_reward(tmp_path, text), ROWS)
    assert report.gold_form == form
    assert report.problems == []


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "data.parquet", ROWS)
    assert main(["dry-run", "--data", str(data), "--reward", "math", "--rows", "20", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["rows"], report["means"]["gold"]) == (True, 20, 1.0)
    (tmp_path / "zero.py").write_text("def compute_score(solution_str): return 0.0\n")
    assert main(["dry-run", "--data", str(data), "--reward", str(tmp_path / "zero.py")]) == 1
    assert "PROBLEM: every answer scored 0" in capsys.readouterr().out
    assert main(["dry-run", "--data", str(data), "--reward", "mth"]) == 2
    assert main(["dry-run", "--data", str(data), "--reward", "math", "--rows", "0"]) == 2
    capsys.readouterr()
    assert main(["score", "--reward", "math", "--answer", r"\boxed{1/2}", "--truth", "0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reason"] == "boxed answer equals 0.5 (exact)"
    assert main(["score", "--reward", "tool_call", "--answer", "3", "--truth-json", "[]"]) == 0
    assert main(["score", "--reward", "math", "--answer", "3"]) == 2
    assert main(["explain", "overlong_penalty"]) == 0
    assert "DAPO (arXiv:2503.14476" in capsys.readouterr().out
    assert main(["list"]) == 0
    assert "multiple_choice" in capsys.readouterr().out
    assert main(["parts", str(tmp_path / "none")]) == 2
    assert main(["sandbox-status"]) == 0
    assert "wall clock" in capsys.readouterr().out


@pytest.mark.skipif(not SHARED.exists(), reason="the shared GSM8K rows are not here")
@pytest.mark.parametrize("name", ["math", "gsm8k"])
def test_real_gsm8k_rows(name: str) -> None:
    """Golds that nobody here wrote: each right against itself, wrong for another row's number."""
    solutions = [json.loads(line) for line in SHARED.read_text(encoding="utf-8").splitlines()][:1000]
    texts = [row.get("answer") or row.get("response") or row["output"] for row in solutions]
    rows = [Row("gsm8k", text.rsplit("####", 1)[1].strip(), {}) for text in texts]
    reward = load_reward(None, name)
    for text, row, other in zip(texts, rows, [*rows[1:], rows[0]], strict=True):
        call = {"data_source": "gsm8k", "ground_truth": row.ground_truth, "extra_info": {}}
        assert reward(solution_str=text, **call)["score"] == 1.0, text
        if float(other.ground_truth.replace(",", "")) != float(row.ground_truth.replace(",", "")):
            assert reward(solution_str=f"#### {other.ground_truth}", **call)["score"] == 0.0
