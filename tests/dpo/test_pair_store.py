"""Tokenized pairs that are kept: the same ones, found again only while nothing that decides them has changed."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dpo_world import pair_rows, preference_parquet

from dpo import pair_store
from dpo.preference_data import Limits, PreferenceDataError, load_pairs

LIMITS = Limits(256, 128)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return preference_parquet(tmp_path / "pairs.parquet", [*pair_rows(), pair_rows()[0]])


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were tokenized."""
    found: list[Path] = []

    def load(path: Path, *rest: Any) -> Any:
        found.append(path)
        return load_pairs(path, *rest)

    monkeypatch.setattr(pair_store, "load_pairs", load)
    return found


def test_a_second_launch_finds_the_same_pairs_and_notes(data: Path, tokenizer: Any, made: list[Path]) -> None:
    first = pair_store.load(data, tokenizer, LIMITS)
    again = pair_store.load(data, copy.deepcopy(tokenizer), replace(LIMITS))
    assert made == [data]
    assert again == first == load_pairs(data, tokenizer, LIMITS)
    assert len(again.notes) == 1
    assert type(again.pairs[0].prompt[0]) is int
    assert type(again.pairs[0].chosen.learned[0]) is bool


def test_padding_and_truncation_of_another_call_are_no_other_tokenizer(data: Path, tokenizer: Any) -> None:
    other = copy.deepcopy(tokenizer)
    other(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert pair_store.fingerprint(other) == pair_store.fingerprint(tokenizer)


def test_what_decides_the_tokens_is_noticed(data: Path, tokenizer: Any, made: list[Path]) -> None:
    pair_store.load(data, tokenizer, LIMITS)
    pair_store.load(data, tokenizer, Limits(255, 128))
    template = copy.deepcopy(tokenizer)
    template.chat_template = template.chat_template.replace("<|im_start|>", "<|im_start|> ")
    pair_store.load(data, template, LIMITS)
    words = copy.deepcopy(tokenizer)
    words.add_tokens(["plus"])
    pair_store.load(data, words, LIMITS)
    os.utime(data, ns=(1, 1))
    pair_store.load(data, tokenizer, LIMITS)
    assert len(made) == 5


def test_a_damaged_file_is_made_anew(data: Path, tokenizer: Any, made: list[Path]) -> None:
    first = pair_store.load(data, tokenizer, LIMITS)
    (kept,) = data.parent.glob("pairs-*.parquet")
    kept.write_bytes(kept.read_bytes()[:100])
    assert pair_store.load(data, tokenizer, LIMITS) == first
    assert len(made) == 2
    assert pair_store.load(data, tokenizer, LIMITS) == first
    assert len(made) == 2


def test_refused_pairs_leave_nothing_behind(data: Path, tokenizer: Any) -> None:
    with pytest.raises(PreferenceDataError, match="are longer than MAX_LENGTH=16"):
        pair_store.load(data, tokenizer, Limits(16, 8))
    assert not [*data.parent.glob("pairs-*"), *data.parent.glob(".*")]
