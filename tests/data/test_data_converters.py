# ruff: noqa: E501 (one row of a table, one line)
"""Every source format -> every target, by exact rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from common.data_utils import Options, convert, detect_format
from common.data_utils.answers import extract_answer, last_boxed, truth_text
from common.data_utils.errors import DataError, RowError
from common.data_utils.formats import FORMATS

U = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
S = {"role": "system", "content": "s"}
B = {"role": "assistant", "content": "b"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def call(arguments: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "arguments": arguments}}


SFT = [
    ("alpaca", {"instruction": "do", "input": "", "output": "a"}, [{"role": "user", "content": "do"}, A]),
    ("alpaca", {"instruction": "do", "input": "this", "output": "a"}, [{"role": "user", "content": "do\nthis"}, A]),
    ("alpaca", {"instruction": "q", "output": "a", "system": "s", "history": [["q", "a"]]}, [S, U, A, U, A]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [U, A]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}, [S, U, A]),
    ("messages", {"conversation": [{"role": "user", "content": "q"}, {"role": "bot", "content": "a"}]}, [U, A]),
    ("messages", {"messages": [S, U, A]}, [S, U, A]),
    ("messages", {"messages": [{"role": "developer", "content": "s"}, U, A]}, [S, U, A]),
    ("messages", {"messages": json.dumps([U, A])}, [U, A]),
    ("messages", {"messages": str([U, A])}, [U, A]),  # pandas writes nested cells as Python literals
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, A]}, [U, A]),
    ("history", {"query": "q", "response": "a", "history": [["q", "a"]]}, [U, A, U, A]),
    ("history", {"query": "q", "response": "a", "history": []}, [U, A]),
    ("prompt_response", {"prompt": "q", "response": "a"}, [U, A]),
    ("prompt_response", {"prompt": "q", "completion": "a"}, [U, A]),
    ("prompt_response", {"prompt": [U], "completion": [A]}, [U, A]),
    ("prompt_response", {"input": "q", "output": "a"}, [U, A]),
    ("qa", {"question": "q", "answer": "a"}, [U, A]),
    ("qa", {"problem": "q", "solution": "a", "answer": "4"}, [U, A]),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}, [U, A]),
    ("ranked", {"prompt": "q", "responses": ["b", "a"], "scores": [1, 2]}, [U, A]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "expected"), SFT)
def test_sft(name: str, row: dict[str, Any], expected: list[dict[str, str]]) -> None:
    done = convert([row], "sft")
    assert (done.format, done.rejected) == (name, [])
    assert done.rows == [{"messages": expected}]


PAIR = {"prompt": [U], "chosen": [A], "rejected": [B]}
HH = "\n\nHuman: q\n\nAssistant: "
PREFERENCE = [
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}, PAIR),
    ("preference", {"question": "q", "chosen": "a", "rejected": "b"}, PAIR),
    ("preference", {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, PAIR),
    ("preference", {"prompt": [U], "chosen": [A], "rejected": [B]}, PAIR),
    ("preference", {"prompt": "q", "chosen": [U, A], "rejected": [U, B]}, PAIR),
    ("preference", {"chosen": [U, A], "rejected": [U, B]}, PAIR),
    ("preference", {"chosen": HH + "a", "rejected": HH + "b"}, PAIR),
    ("preference", {"prompt": HH.strip(), "chosen": "a", "rejected": "b"}, PAIR),
    ("preference", {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
                    "rejected": {"from": "gpt", "value": "b"}}, PAIR),
    ("ranked", {"prompt": "q", "responses": ["a", "c", "b"]}, PAIR),
    ("ranked", {"prompt": "q", "responses": ["b", "c", "a"], "scores": [0.1, 0.5, 0.9]}, PAIR),
    ("ranked", {"prompt": "q", "responses": ["b", "a"], "ranks": [2, 1]}, PAIR),
    ("ranked", {"instruction": "q", "completions": [{"response": "b", "overall_score": 1}, {"response": "a", "overall_score": 9}]}, PAIR),
    ("alpaca_ranked", {"instruction": "q", "output": ["a", "b"]}, PAIR),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "expected"), PREFERENCE)
def test_preference(name: str, row: dict[str, Any], expected: dict[str, Any]) -> None:
    done = convert([row], "preference")
    assert (done.format, done.rejected) == (name, [])
    assert done.rows == [expected]


def rl(truth: Any, source: str, ability: str = "general", **extra: Any) -> dict[str, Any]:
    return {
        "data_source": source,
        "prompt": [U],
        "ability": ability,
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"split": "train", "index": 0, **extra},
    }


RL = [
    ("qa", {"question": "q", "answer": "6 * 7\n#### 42"}, rl("42", "openai/gsm8k", "math", answer="6 * 7\n#### 42")),
    ("qa", {"question": "q", "answer": "so\n#### $1,234"}, rl("1234", "openai/gsm8k", "math", answer="so\n#### $1,234")),
    ("qa", {"question": "q", "answer": "so \\boxed{\\frac{1}{2}}."},
     rl("\\frac{1}{2}", "lighteval/MATH", "math", answer="so \\boxed{\\frac{1}{2}}.")),
    ("qa", {"question": "q", "answer": "Paris"}, rl("Paris", "rows")),
    ("qa", {"question": "q", "answer": 42}, rl("42", "rows")),
    ("qa", {"question": "q", "answer": 42.0}, rl("42", "rows")),
    ("qa", {"problem": "q", "solution": "long", "answer": "4", "level": 3}, rl("4", "rows", level=3)),
    ("prompt_only", {"prompt": "q", "ground_truth": "4"}, rl("4", "rows")),
    ("prompt_only", {"question": "q", "ground_truth": ["4", "four"]}, rl('["4", "four"]', "rows")),
    ("alpaca", {"instruction": "q", "output": "a", "id": 7}, rl("a", "rows", id=7)),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, rl("a", "rows")),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}, rl("a", "rows")),
    ("verl", {"data_source": "d", "prompt": [U], "reward_model": {"ground_truth": 4}, "extra_info": {"index": 0}}, rl("4", "d")),
    ("verl", {"prompt": [U], "reward_model": {"ground_truth": {"target": 9}}, "extra_info": {"index": 0}}, rl({"target": 9}, "rows")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "expected"), RL)
def test_rl(name: str, row: dict[str, Any], expected: dict[str, Any]) -> None:
    done = convert([row], "rl")
    assert (done.format, done.rejected) == (name, [])
    assert done.rows == [expected]


def test_tool_calls_and_schemas_become_openai_with_json_text() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": '{"y": 2}'},
            {"from": "gpt", "value": "a"},
        ],
        "tools": '[{"name": "f", "parameters": {"type": "object", "properties": {}}}]',
    }
    expected = [
        U,
        {"role": "assistant", "content": "", "tool_calls": [call('{"x": 1}')]},
        {"role": "tool", "content": '{"y": 2}'},
        A,
    ]
    assert convert([row], "sft").rows == [{"messages": expected, "tools": json.dumps([TOOL])}]
    openai = {
        "messages": [
            U,
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", **call('{"x": 1}')}]},
            {"role": "tool", "tool_call_id": "1", "content": '{"y": 2}'},
            A,
        ],
        "tools": [TOOL],
    }
    expected[1]["tool_calls"] = [{"id": "1", **call('{"x": 1}')}]
    expected[2] = {"role": "tool", "content": '{"y": 2}', "tool_call_id": "1"}
    assert convert([openai], "sft").rows == [{"messages": expected, "tools": json.dumps([TOOL])}]


def test_options_shape_rl_rows() -> None:
    options = Options(
        system_prompt="s",
        prompt_template="{question} Think. {x} \\boxed{}",
        data_source="mine",
        ability="logic",
        agent_name="tool_agent",
        columns={"question": "frage"},
    )
    row = convert(
        [{"frage": "q", "answer": "4", "extra_info": {"need_tools_kwargs": True}}], "rl", options
    ).rows[0]
    assert row["prompt"] == [S, {"role": "user", "content": "q Think. {x} \\boxed{}"}]
    assert (row["data_source"], row["ability"], row["agent_name"]) == ("mine", "logic", "tool_agent")
    assert row["extra_info"] == {"need_tools_kwargs": True, "split": "train", "index": 0}


def test_own_columns_of_a_row_win_over_the_options() -> None:
    row = {
        "question": "q",
        "answer": "4",
        "system": "s",
        "data_source": "theirs",
        "agent_name": "single_turn_agent",
    }
    done = convert(
        [row], "rl", Options(system_prompt="other", data_source="mine", agent_name="tool_agent")
    ).rows[0]
    assert done["prompt"][0] == S
    assert (done["data_source"], done["agent_name"]) == ("theirs", "single_turn_agent")


@pytest.mark.parametrize("task", ["sft", "rl"])
def test_media_columns_stay_beside_the_messages(task: str) -> None:
    row = {"question": "<image> what is it?", "answer": "4", "images": ["cat.png"]}
    done = convert([row, {"question": "q", "answer": "4"}], task)
    assert [entry.get("images") for entry in done.rows] == [["cat.png"], None]
    assert "images" not in done.rows[0].get("extra_info", {})


def test_optional_ground_truth_lets_prompts_through() -> None:
    done = convert([{"prompt": "q"}], "rl", Options(ground_truth="optional"))
    assert done.rows[0]["reward_model"] == {"style": "model", "ground_truth": ""}
    assert convert([{"prompt": "q"}], "rl").rejected[0].field == "ground_truth"


BAD = [
    ("sft", {"question": "q", "answer": ""}, "answer", "is empty"),
    ("sft", {"question": "  \n", "answer": "a"}, "question", "is empty"),
    ("sft", {"question": None, "answer": "a"}, "question", "is missing"),
    ("sft", {"question": "q", "answer": float("nan")}, "answer", "must be text, is NaN"),
    ("sft", {"question": True, "answer": "a"}, "question", "must be text, is true/false"),
    ("sft", {"question": "q", "answer": {"x": 1}}, "answer", "must be text, is dict"),
    ("rl", {"question": "q", "ground_truth": 1.5e22, "answer": "a"}, "ground_truth", "too large to be exact"),
    ("sft", [1, 2], "row", "must be an object, is a list"),
    ("sft", "text", "row", "must be an object, is text"),
    ("sft", None, "row", "must be an object, is null"),
    ("rl", {"question": "q", "answer": ""}, "ground_truth", "is missing or empty"),
    ("rl", {"question": "q", "answer": "no marker"}, "answer", "neither '#### x' on its last line"),
]


@pytest.mark.parametrize(("task", "row", "field", "reason"), BAD)
def test_bad_rows_are_named(task: str, row: Any, field: str, reason: str) -> None:
    good = {"question": "q", "answer": "so\n#### 4"}
    done = convert([good, good, row], task)
    assert len(done.rows) == 2
    rejected = done.rejected[0]
    assert (rejected.row, rejected.field) == (3, field)
    assert reason.replace("is dict", "is an object") in rejected.reason


BAD_CHATS = [
    ([], "has no messages"),
    ([{"role": "user"}], "the user message is empty"),
    ([{"role": "alien", "content": "x"}, A], "unknown role 'alien'"),
    ([{"content": "x"}], "has no role"),
    (["x"], "a message must be an object"),
    ([U, {"role": "assistant", "content": ""}], "the assistant message is empty"),
    ([U], "no assistant turn to learn from"),
    ([A], "no user turn before the answer"),
    ([U, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "not valid JSON"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, A], "only text is converted"),
    ([U, {"role": "assistant", "content": "a", "weight": 0}], "has a weight"),
    (json.dumps([U])[:-3], "not valid JSON"),
    (5, "must be a list of messages"),
]  # fmt: skip


@pytest.mark.parametrize(("turns", "reason"), BAD_CHATS)
def test_bad_conversations_are_named(turns: Any, reason: str) -> None:
    good = {"messages": [U, A]}
    done = convert([good, {"messages": turns}], "sft")
    assert len(done.rows) == 1
    assert reason in done.rejected[0].reason
    assert done.rejected[0].field.startswith("messages")


def test_pairs_without_a_preference_are_bad() -> None:
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows = [good, {**good, "rejected": "a"}, {**good, "rejected": ""}, {**good, "prompt": None}]
    assert [entry.row for entry in convert(rows, "preference").rejected] == [2, 3, 4]


def test_prompt_that_contradicts_the_conversations_is_bad() -> None:
    rows = [
        {"prompt": "other", "chosen": [U, A], "rejected": [U, B]},
        {"prompt": "q", "chosen": [U, A], "rejected": [U, B]},
    ]
    done = convert(rows, "preference")
    assert (len(done.rows), done.rejected[0].field) == (1, "prompt")


def test_two_different_system_messages_are_bad() -> None:
    rows = [{"messages": [S, U, A], "system": text} for text in ("s", "", "other")]
    done = convert(rows, "sft")
    assert ([row["messages"] for row in done.rows], done.rejected[0].row) == ([[S, U, A]] * 2, 3)


def test_verl_rows_keep_what_their_reward_model_says() -> None:
    own = {"style": "model", "ground_truth": 4, "verifier": "lean"}
    row = convert([{"prompt": [U], "reward_model": own}], "rl").rows[0]
    assert row["reward_model"] == {"style": "model", "ground_truth": "4", "verifier": "lean"}


def test_rl_prompt_with_tool_calls_is_bad() -> None:
    row = {
        "messages": [
            U,
            {"role": "assistant", "content": "", "tool_calls": [call("{}")]},
            {"role": "tool", "content": "1"},
            A,
        ]
    }
    assert "tool calls" in convert([row], "rl").rejected[0].reason


def test_unknown_format_says_what_is_there_and_what_is_needed() -> None:
    with pytest.raises(
        DataError, match=r"columns foo, bar; formats and the columns they need: .*qa: question, answer"
    ):
        convert([{"foo": "1", "bar": "2"}], "sft")


def test_format_that_cannot_become_the_task_says_what_it_can() -> None:
    with pytest.raises(
        DataError, match=r"is qa data .* cannot become preference rows; it can become: sft, rl"
    ):
        convert([{"question": "q", "answer": "a"}], "preference")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (Options(format="nope"), "unknown format 'nope'; known formats: verl"),
        (Options(columns={"question": "zzz"}), "no column 'zzz'; the file has: question, answer"),
        (Options(columns={"nope": "question"}), "unknown field 'nope'"),
        (Options(prompt_template="no place"), "must contain {question}"),
    ],
)
def test_wrong_options_are_one_line(options: Options, text: str) -> None:
    with pytest.raises(DataError) as caught:
        convert([{"question": "q", "answer": "a"}], "rl", options)
    assert text in str(caught.value)
    assert len(caught.value.problems) == 1


def test_template_belongs_to_rl() -> None:
    with pytest.raises(DataError, match="applies to --task rl only"):
        convert([{"question": "q", "answer": "a"}], "sft", Options(prompt_template="{question}!"))


@pytest.mark.parametrize("name", FORMATS)
def test_each_example_is_recognised_as_its_format(name: str) -> None:
    item = FORMATS[name]
    row = json.loads(item.example)
    for task in item.tasks:
        if (name, task) == ("verl", "sft"):
            row["extra_info"] = {"answer": "a"}
        done = convert([row], task)
        assert (done.format, len(done.rows), done.rejected) == (name, 1, [])
        assert f"{name} (" in done.reason


def test_detection_gives_its_reason() -> None:
    rows = [{"question": "q", "answer": "a"}] * 3
    assert detect_format(rows) == (
        "qa",
        "qa (question=question, answer=answer): 3 of the first 3 rows have its shape",
    )


def test_few_marked_answers_do_not_make_the_rule() -> None:
    rows = [{"question": "q", "answer": "plain"}] * 3 + [{"question": "q", "answer": "so\n#### 4"}]
    assert [row["reward_model"]["ground_truth"] for row in convert(rows, "rl").rows] == ["plain"] * 3 + [
        "so\n#### 4"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#### 72", "72"),
        ("a\n####72  ", "72"),
        ("#### -1,234.5", "-1234.5"),
        ("#### 3,14", "3,14"),
        ("#### $ 5", "5"),
        ("#### 1,2,3", "1,2,3"),
        ("### heading", None),
        ("####", None),
        ("x \\boxed{1} y \\boxed{\\text{a{b}}}", "\\text{a{b}}"),
        ("\\boxed{", None),
        ("nothing", None),
    ],
)
def test_extract_answer(text: str, expected: str | None) -> None:
    assert extract_answer(text) == expected


def test_boxed_that_never_closes_has_no_answer() -> None:
    assert last_boxed("\\boxed{" + "{" * 1000) is None


@pytest.mark.parametrize("value", [None, "", "  ", float("nan"), [], {}])
def test_missing_truths(value: Any) -> None:
    with pytest.raises(RowError):
        truth_text(value)
