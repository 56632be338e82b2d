# ruff: noqa: E501 (one row of a table, one line)
"""Findings by row number, the HTML page, exit codes, and the real sample data."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED, gsm_rows

from common import check_data
from common.data_utils import DataError, Options, convert, json_to_parquet, load_rows, validate
from common.data_utils.checks import role_problem
from common.data_utils.cli import main
from common.data_utils.duplicates import NearDuplicates, shingles
from common.data_utils.findings import Finding, Report, histogram
from common.data_utils.language import language_of

Write = Callable[..., Path]
LONG = "A farmer has {} apples and gives some of them to each of the five neighbours who live along the river road"


def found(report: Report, code: str) -> Finding:
    matching = [item for item in report.findings if item.code == code]
    assert len(matching) == 1, [item.code for item in report.findings]
    return matching[0]


def rows_of(report: Report, code: str) -> list[int]:
    return [place.row for place in found(report, code).rows]


def test_clean_data_has_no_findings(write_lines: Write) -> None:
    rows = [
        {"question": question, "answer": "so\n#### 4"}
        for question in ("How tall is it?", "Who came first?", "Why not both?")
    ]
    report = validate(write_lines(rows), "rl")
    assert (report.ok, report.findings, report.rows_in, report.rows_ok) == (True, [], 3, 3)
    assert report.stats["languages"] == {"en": 1.0}


def test_bad_rows_are_grouped_by_reason_with_line_numbers(write_lines: Write) -> None:
    rows: list[Any] = [
        *gsm_rows(3),
        "",
        {"question": "", "answer": "#### 1"},
        "{",
        {"question": " ", "answer": "#### 1"},
    ]
    report = validate(write_lines(rows), "rl", near=False)
    assert not report.ok
    bad = {
        item.message: [place.row for place in item.rows]
        for item in report.findings
        if item.severity == "error"
    }
    assert bad.pop("question: is empty") == [5, 7]
    assert list(bad.values()) == [[6]]


def test_missing_ground_truth_is_an_error(write_lines: Write) -> None:
    report = validate(
        write_lines([{"prompt": "a", "ground_truth": "1"}, {"prompt": "b", "ground_truth": None}]), "rl"
    )
    assert rows_of(report, "bad_row") == [2]
    assert not report.ok


def test_duplicates_exact_prompt_and_near(write_lines: Write) -> None:
    rows = [
        {"question": LONG.format(12), "answer": "one"},
        {"question": "Something else entirely, about trains and clocks.", "answer": "two"},
        {"question": LONG.format(12), "answer": "one"},
        {"question": LONG.format(12), "answer": "another"},
        {"question": LONG.format(12) + " today", "answer": "three"},
    ]
    report = validate(write_lines(rows), "sft")
    assert rows_of(report, "duplicate") == [3]
    assert rows_of(report, "duplicate_prompt") == [4]
    assert rows_of(report, "near_duplicate") == [5]
    assert found(report, "near_duplicate").examples[0].endswith(f"~ row 1 of {report.sources[0]['name']}")
    assert report.ok
    assert "near_duplicate" not in {
        item.code for item in validate(write_lines(rows), "sft", near=False).findings
    }


def test_near_duplicates_work_without_spaces() -> None:
    index = NearDuplicates()
    text = "小明有十二个苹果，他给了住在河边的五个邻居每人两个苹果，请问他现在还剩下多少个苹果？"
    assert index.add(text) is None
    assert index.add("天气很好，我们一起去公园散步，看到了许多美丽的花朵和可爱的小鸟在树上唱歌。") is None
    assert index.add(text + "谢谢") == 0
    assert index.nearest(text) == 0
    assert shingles("a b") == ["a b"]


def test_leaks_between_train_and_validation(write_lines: Write) -> None:
    train = write_lines(
        [{"question": LONG.format(7), "answer": "a"}, {"question": "Other one?", "answer": "b"}], "t.jsonl"
    )
    val = write_lines(
        [
            {"question": "Quite new question?", "answer": "c"},
            {"question": "Other one?", "answer": "b"},
            {"question": LONG.format(7) + " now", "answer": "a"},
        ],
        "v.jsonl",
    )
    report = validate(train, "sft", val=str(val))
    assert (rows_of(report, "leak"), rows_of(report, "near_leak"), report.ok) == ([2], [3], False)
    assert {place.file for place in found(report, "leak").rows} == {str(val)}


def test_roles_out_of_order(write_lines: Write) -> None:
    def chat(*roles: str) -> dict[str, Any]:
        return {
            "messages": [{"role": role, "content": f"{role} {place}"} for place, role in enumerate(roles)]
        }

    rows = [
        chat("system", "user", "assistant"),
        chat("user", "user", "assistant"),
        chat("user", "assistant", "system", "user", "assistant"),
        chat("assistant", "user", "assistant"),
        chat("user", "assistant", "user"),
        chat("user", "tool", "assistant"),
    ]
    report = validate(write_lines(rows), "sft", near=False)
    assert rows_of(report, "roles_order") == [2, 3, 4, 6]
    assert rows_of(report, "no_last_answer") == [5]
    assert report.ok
    assert role_problem(rows[1]["messages"]) == "two user messages in a row at position 2"


def test_mixed_types_blank_columns_and_lost_characters(write_lines: Write) -> None:
    rows = [
        {"question": "Why is it so?", "answer": "because", "level": 1},
        {"question": "How is it so?", "answer": "be\ufffdcause", "level": "hard"},
        {"question": "Who is it then?", "answer": "me", "level": 2, "note": " "},
    ]
    report = validate(write_lines(rows), "rl", near=False)
    assert rows_of(report, "mixed_types") == [2]
    assert rows_of(report, "replacement_characters") == [2]
    assert rows_of(report, "blank") == [3]
    assert report.stats["columns"]["level"] == {"int": 2, "str": 1}


def test_length_bias_of_pairs(write_lines: Write) -> None:
    rows = [{"prompt": f"q{n}", "chosen": "long answer " * 9, "rejected": "short"} for n in range(40)]
    report = validate(write_lines(rows), "preference", near=False)
    assert "the longer one in 100% of the pairs" in found(report, "length_bias").message
    assert report.stats["preference_lengths"]["chosen_longer"] == 1.0
    fair = [
        row if n % 2 else {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
        for n, row in enumerate(rows)
    ]
    assert "length_bias" not in {
        item.code for item in validate(write_lines(fair), "preference", near=False).findings
    }


def test_token_lengths_and_limits(write_lines: Write, tokenizer_dir: Path) -> None:
    rows = [{"question": "q" * size, "answer": "a" * 10} for size in (5, 50, 500)]
    arguments: dict[str, Any] = {
        "tokenizer": str(tokenizer_dir),
        "max_prompt_length": 100,
        "max_length": 60,
        "near": False,
    }
    report = validate(write_lines(rows), "sft", **arguments)
    assert rows_of(report, "over_prompt_length") == [3]
    assert rows_of(report, "over_length") == [2, 3]
    assert not report.ok
    assert validate(write_lines(rows), "sft", truncation="right", **arguments).ok
    plot = next(item for item in report.histograms if item.name == "tokens per row")
    assert (plot.limit, sum(plot.counts), plot.longest) == (
        60,
        3,
        500 + 10 + len("user\n\nassistant\n\n") + 4,
    )


def test_template_that_refuses_a_row(write_lines: Write, tokenizer_dir: Path, tmp_path: Path) -> None:
    import shutil

    strict = tmp_path / "strict"
    shutil.copytree(tokenizer_dir, strict)
    template = "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}{{ message.content }}{% endfor %}"
    (strict / "chat_template.jinja").write_text(template)
    rows = [{"question": "q", "answer": "a"}, {"question": "q", "answer": "a", "system": "s"}]
    report = validate(write_lines(rows), "sft", tokenizer=str(strict), near=False)
    assert rows_of(report, "template_refused") == [2]
    assert "no system here" in found(report, "template_refused").examples[0]


def test_tools_that_the_template_does_not_print(
    write_lines: Write, tokenizer_dir: Path, tmp_path: Path
) -> None:
    import shutil

    tools = [{"name": "lookup", "parameters": {"type": "object", "properties": {}}}]
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": tools}
    source = write_lines([row])
    assert "tools_unseen" not in {
        item.code for item in validate(source, "sft", tokenizer=str(tokenizer_dir)).findings
    }
    blind = tmp_path / "blind"
    shutil.copytree(tokenizer_dir, blind)
    (blind / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.content }}{% endfor %}"
    )
    report = validate(source, "sft", tokenizer=str(blind))
    assert (rows_of(report, "tools_unseen"), found(report, "tools_unseen").examples) == (
        [1],
        ["row 1: lookup"],
    )


def test_truths_that_the_reward_cannot_use(write_lines: Write, tmp_path: Path) -> None:
    pytest.importorskip("common.reward_functions")
    code = (
        "def compute_score(data_source, solution_str, ground_truth, extra_info):\n"
        "    if ground_truth == 'boom':\n        raise ValueError('cannot parse boom')\n"
        "    return {'score': float(ground_truth.isdigit() and ground_truth in solution_str)}\n"
    )
    (tmp_path / "reward.py").write_text(code)
    rows = [{"prompt": f"q{n}", "ground_truth": truth} for n, truth in enumerate(["4", "boom", "four"])]
    report = validate(write_lines(rows), "rl", reward=str(tmp_path / "reward.py"), near=False)
    assert rows_of(report, "reward") == [2, 3]
    examples = found(report, "reward").examples
    assert "raises ValueError: cannot parse boom" in examples[0]
    assert "scores 0, no better than an empty one" in examples[1]
    with pytest.raises(DataError, match=r"--reward .*other"):
        validate(write_lines(rows), "rl", reward=str(tmp_path / "reward.py") + ":other")
    with pytest.raises(DataError, match="applies to --task rl"):
        validate(write_lines(gsm_rows(1)), "sft", reward="math")


class Page(HTMLParser):
    """Collects tags and what they link to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_html_report_is_one_file_and_escapes_the_data(write_lines: Write, tmp_path: Path) -> None:
    rows = [*gsm_rows(30), {"question": "<script>alert(1)</script>", "answer": "", "<b>": "x"}]
    page_path = tmp_path / "out" / "report.html"
    code = main(["validate", str(write_lines(rows)), "--task", "rl", "--html", str(page_path), "--no-near"])
    assert code == 1
    text = page_path.read_text(encoding="utf-8")
    page = Page(text)
    assert (page.tags.count("svg"), page.links, "script" in page.tags, "b" in page.tags) == (
        1,
        [],
        False,
        False,
    )
    assert "row 31 of" in text
    assert "&lt;b&gt;" in text


def test_exit_codes_and_json(write_lines: Write, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write_lines(gsm_rows(5), "g.jsonl"), write_lines([*gsm_rows(5), "{"], "b.jsonl")
    assert main(["validate", str(good), "--task", "rl", "--no-near"]) == 0
    assert "training may start" in capsys.readouterr().out
    assert main(["validate", str(bad), "--task", "rl", "--no-near"]) == 1
    assert "training must not start" in capsys.readouterr().out
    assert main(["stats", str(bad), "--task", "rl", "--no-near", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["rows_in"], report["rows_ok"]) == (False, 6, 5)
    assert report["findings"][0]["rows"] == [{"file": str(bad), "row": 6}]
    assert check_data.main([str(bad), "--task", "rl", "--no-near"]) == 1
    assert main(["validate", "nothing.jsonl", "--task", "rl"]) == 2
    assert capsys.readouterr().err == "nothing.jsonl: no such file or folder\n"


def test_convert_command(write_lines: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = str(write_lines(gsm_rows(5))), str(tmp_path / "o.parquet")
    assert main(["convert", source, output, "--task", "rl", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows_in"], summary["rows_out"], summary["output"]) == (5, 5, output)
    assert (
        main(["split", output, str(tmp_path / "t.parquet"), str(tmp_path / "v.parquet"), "--val-size", "2"])
        == 0
    )
    assert capsys.readouterr().out.startswith("3 rows to")
    assert main(["export", output, str(tmp_path / "back.jsonl")]) == 0
    assert len((tmp_path / "back.jsonl").read_text().splitlines()) == 5
    assert main(["formats"]) == 0
    assert "qa" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("What is the price of the book that you have?", "en"),
        ("¿Cuántos libros tiene la niña que vive en la casa?", "es"),
        ("Wie viele Bücher hat das Kind in der Schule, und ist es nicht müde?", "de"),
        ("Combien de livres sont dans la bibliothèque de la ville ?", "fr"),
        ("小明有多少本书？", "zh"),
        ("これは何ですか。", "ja"),
        ("책이 몇 권입니까?", "ko"),
        ("Сколько книг?", "ru"),
        ("请写一个 Python 函数 def f(x): return x", "zh"),
        ("12 + 3 = ?", "none"),
        ("lorem ipsum dolor amet", "latin"),
    ],
)
def test_languages(text: str, code: str) -> None:
    assert language_of(text) == code


def test_histogram_counts_every_value() -> None:
    plot = histogram("x", [1, 1, 2, 500, 1000])
    assert (sum(plot.counts), plot.edges[0], plot.edges[-1] > 1000, plot.longest) == (5, 1, True, 1000)
    assert histogram("x", [7]).counts == [1]


SAMPLES = [
    ("gsm8k_train_2000.jsonl", ("sft", "rl"), 2000),
    ("alpaca_en_demo.json", ("sft", "rl"), 999),
    ("alpaca_zh_demo.json", ("sft", "rl"), 1000),
    ("dpo_en_demo.json", ("preference", "sft", "rl"), 300),
    ("glaive_toolcall_en_demo.json", ("sft",), 300),
]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared sample data is not here")
@pytest.mark.parametrize(("name", "tasks", "count"), SAMPLES)
def test_shared_samples_convert_without_a_flag(
    name: str, tasks: tuple[str, ...], count: int, tmp_path: Path
) -> None:
    for task in tasks:
        summary = json_to_parquet(SHARED / name, tmp_path / f"{task}.parquet", task=task)
        assert (summary.rows_in, summary.rows_out) == (count, count)
        assert validate(SHARED / name, task, near=False).rows_ok == count


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared sample data is not here")
def test_shared_gsm8k_truths_are_the_numbers_after_the_hashes() -> None:
    rows = list(load_rows(SHARED / "gsm8k_train_2000.jsonl"))
    done = convert(rows, "rl", Options())
    expected = [row["answer"].rsplit("#### ", 1)[1].replace(",", "") for row in rows]
    assert [row["reward_model"]["ground_truth"] for row in done.rows] == expected
