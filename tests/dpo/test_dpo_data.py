"""Pairs as tokens: the prompt boundary, the limits, and every pair that is left out by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dpo_world import pair_rows, preference_parquet

from dpo.data import make_data
from dpo.preference_data import Limits, PreferenceDataError, check_limits, load_pairs

LIMITS = Limits(256, 128)
ASK = [{"role": "user", "content": "What is 2 plus 2?"}]
# Opens the assistant's turn with a thought that is not printed before an answer that is there.
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>{% endif %}"
)
# Prints the last message differently from the others, so that a prompt has no end.
REWRITING = (
    "{% for m in messages %}{% if loop.last %}LAST:{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def load(tmp_path: Path, tokenizer: Any, rows: list[dict], limits: Limits = LIMITS) -> Any:
    return load_pairs(preference_parquet(tmp_path / "pairs.parquet", rows), tokenizer, limits)


def with_template(tokenizer: Any, template: str) -> Any:
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def test_answers_go_on_where_the_prompt_ends(tmp_path: Path, tokenizer: Any) -> None:
    rows = pair_rows()
    loaded = load(tmp_path, tokenizer, rows)
    assert loaded.notes == []
    assert [pair.row for pair in loaded.pairs] == list(range(1, len(rows) + 1))
    for pair, row in zip(loaded.pairs, rows, strict=True):
        prompt = (
            row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
        )
        for answer, side in ((pair.chosen, "chosen"), (pair.rejected, "rejected")):
            turns = [*prompt, {"role": "assistant", "content": row[side]}]
            assert tokenizer.decode(pair.prompt + answer.ids) == tokenizer.apply_chat_template(
                turns, tokenize=False
            )
            assert tokenizer.decode(answer.ids).startswith(row[side])
            assert all(answer.learned)


def test_implicit_prompts_and_transcripts(tmp_path: Path, tokenizer: Any) -> None:
    turns = [*ASK, {"role": "assistant", "content": "Four."}]
    rows = [
        {"chosen": turns, "rejected": [*ASK, {"role": "assistant", "content": "Five."}]},
        {
            "chosen": [*ASK, {"role": "assistant", "content": "4"}],
            "rejected": [*ASK, {"role": "assistant", "content": "5"}],
        },
    ]
    loaded = load(tmp_path, tokenizer, rows)
    assert tokenizer.decode(loaded.pairs[0].chosen.ids).startswith("Four.")
    assert "What is 2 plus 2?" in tokenizer.decode(loaded.pairs[1].prompt)
    hh = [
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away."}
    ]
    assert tokenizer.decode(load(tmp_path, tokenizer, hh).pairs[0].rejected.ids).startswith("Go away.")


def test_tools_reach_the_template(tmp_path: Path, tokenizer: Any) -> None:
    tool = {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
    }
    row = {"prompt": ASK, "chosen": "Four.", "rejected": "Five.", "tools": [tool]}
    other = with_template(
        tokenizer, "{{ tools | map(attribute='function.name') | join }}" + THINKING.replace("<think>", "")
    )
    assert tokenizer.decode(load(tmp_path, other, [row]).pairs[0].prompt).startswith("add<user>")


def test_only_the_model_own_words_are_learned(tmp_path: Path, tokenizer: Any) -> None:
    long = [
        {"role": "assistant", "content": "Shall I?"},
        {"role": "user", "content": "Yes, do."},
        {"role": "assistant", "content": "Four."},
    ]
    rows = [{"prompt": ASK, "chosen": long, "rejected": [{"role": "assistant", "content": "Five."}]}]
    pair = load(tmp_path, tokenizer, rows).pairs[0]
    said = [token for token, own in zip(pair.chosen.ids, pair.chosen.learned, strict=True) if own]
    assert "Shall I?" in tokenizer.decode(said)
    assert "Four." in tokenizer.decode(said)
    assert "Yes, do." not in tokenizer.decode(said)
    assert "Yes, do." in tokenizer.decode(pair.chosen.ids)


def test_a_prompt_end_that_answers_do_not_continue_is_left_out_and_named(
    tmp_path: Path, tokenizer: Any
) -> None:
    rows = [{"prompt": "Why?", "chosen": "<assistant>", "rejected": "No."}]
    other = with_template(tokenizer, THINKING)
    loaded = load(tmp_path, other, rows)
    assert "1 of 1 pairs have answers that do not continue" in loaded.notes[0]
    assert "think" in loaded.notes[0]
    assert tokenizer.decode(loaded.pairs[0].chosen.ids) == "<assistant></assistant>"


def test_a_template_that_rewrites_the_prompt_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(PreferenceDataError, match="prints the prompt differently when an answer follows"):
        load(tmp_path, with_template(tokenizer, REWRITING), pair_rows(3))


def test_a_template_error_names_the_rows(tmp_path: Path, tokenizer: Any) -> None:
    other = with_template(
        tokenizer, "{{ raise_exception('no system turns') if messages[0].role == 'system' }}{{ '' }}"
    )
    with pytest.raises(PreferenceDataError, match=r"pairs cannot be used: .*no system turns \(pairs 2, 5\)"):
        load(tmp_path, other, pair_rows(6))


LONG = [
    {"prompt": "Hi", "chosen": "yes " * 300, "rejected": "no"},
    {"prompt": "Hi there", "chosen": "yes", "rejected": "no"},
    {"prompt": "Hi " * 200, "chosen": "yes", "rejected": "no"},
]


def test_long_pairs_are_refused_with_what_to_do(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(PreferenceDataError) as caught:
        load(tmp_path, tokenizer, LONG, Limits(200, 150))
    assert "2 of 3 pairs are longer than MAX_LENGTH=200 tokens (pairs 1, 3); the longest has" in str(
        caught.value
    )
    assert "TRUNCATION=cut or drop" in str(caught.value)


def test_long_pairs_are_dropped_or_cut_and_named(tmp_path: Path, tokenizer: Any) -> None:
    dropped = load(tmp_path, tokenizer, LONG, Limits(200, 150, "drop"))
    assert [pair.row for pair in dropped.pairs] == [2]
    assert "(pairs 1, 3): left out" in dropped.notes[0]
    cut = load(tmp_path, tokenizer, LONG, Limits(200, 150, "cut"))
    assert [pair.row for pair in cut.pairs] == [1, 2, 3]
    assert max(pair.longest for pair in cut.pairs) == 200
    third = cut.pairs[2]
    assert len(third.prompt) == 150
    assert third.chosen.ids and third.rejected.ids
    assert tokenizer.decode(third.prompt).endswith("assistant\n")


def test_cutting_never_leaves_two_equal_answers(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "Hi", "chosen": "so " * 300 + "yes", "rejected": "so " * 300 + "no"}, *LONG[1:2]]
    with pytest.raises(PreferenceDataError, match="have the same tokens on both sides once they are cut"):
        load(tmp_path, tokenizer, rows, Limits(200, 150, "cut"))
    left = load(tmp_path, tokenizer, rows, Limits(200, 150, "cut", "quarantine"))
    assert [pair.row for pair in left.pairs] == [2]
    assert any("once they are cut (pair 1): left out" in note for note in left.notes)


def test_pairs_said_twice_and_against_each_other_are_named(tmp_path: Path, tokenizer: Any) -> None:
    row = {"prompt": "Hi", "chosen": "yes", "rejected": "no"}
    rows = [row, dict(row), {"prompt": "Hi", "chosen": "no", "rejected": "yes"}]
    notes = load(tmp_path, tokenizer, rows).notes
    assert any("say again what an earlier pair says (pair 2)" in note for note in notes)
    assert any("say the opposite of an earlier pair" in note and "(pair 3)" in note for note in notes)


def test_missing_columns_are_named(tmp_path: Path, tokenizer: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "answer": ["b"]}), path)
    with pytest.raises(
        PreferenceDataError, match=r"lacks the columns chosen, rejected \(found: prompt, answer\)"
    ):
        load_pairs(path, tokenizer, LIMITS)


def test_limits_leave_room_for_answers() -> None:
    assert check_limits(LIMITS) == []
    assert "below MAX_LENGTH=128" in check_limits(Limits(128, 128))[0]
    assert "MAX_LENGTH=1" in check_limits(Limits(1, 1))[0]


def test_sample_pairs_are_what_the_script_makes() -> None:
    folder = Path(make_data.__file__).parent
    for name, rows in zip(("train", "val"), make_data.make(), strict=True):
        assert [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] == rows


def test_sample_answers_are_right_and_questions_stand_in_one_file() -> None:
    train, val = make_data.make()
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in val}
    checked = 0
    for row in [*train, *val]:
        assert row["chosen"] != row["rejected"]
        words = row["prompt"].rstrip("?").split()
        if row["prompt"].startswith("What is") and "plus" in words:
            assert row["chosen"] == f"{words[2]} plus {words[4]} is {int(words[2]) + int(words[4])}."
            checked += 1
        elif row["prompt"].startswith("How many minutes"):
            assert row["chosen"] == f"{words[4]} hours are {int(words[4]) * 60} minutes."
            checked += 1
    assert checked > 100
