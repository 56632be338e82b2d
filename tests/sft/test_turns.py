"""What is learned of a conversation, under templates that behave like SmolLM2's, Qwen2.5's and Qwen3's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_model import CHATML, tiny_tokenizer

from common.chat_tokens import turns
from common.chat_tokens.dataset import TokenDataset, deal
from common.chat_tokens.store import Settings, tokenize
from common.data_utils.errors import DataError

# A default system prompt, tools in the system turn, results of tools gathered in one user turn.
QWEN25 = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content %}{% else %}{% set first = 'Be good.' %}"
    "{% endif %}<|im_start|>system\n{{ first }}{% if tools %}{{ tools | tojson }}{% endif %}<|im_end|>\n"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}\n<r>{{ m.content }}</r>"
    "{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% elif m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Reasoning of earlier turns is removed; an answer without any gets an empty block while it is the last.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set answer = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if not loop.last %}{{ answer }}{% elif '</think>' in m.content %}{{ m.content }}"
    "{% else %}<think>\n\n</think>\n\n{{ answer }}{% endif %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# The generation prompt forces <think>, which a finished turn does not show.
FORCED = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def learned(
    template: str, messages: list, tools: Any = None, thinking: bool | None = None
) -> list[list[str]]:
    """The learned pieces of every text, after tokenization."""
    tokenizer = tiny_tokenizer(template=template)
    texts = turns.learned(turns.renderer(tokenizer, tools, thinking), messages)
    found = []
    for ids, mask in turns.encode(tokenizer, texts):
        pieces, last = [], 0
        for token, bit in zip(ids, mask, strict=True):
            if bit:
                pieces = [*pieces, []] if not last else pieces
                pieces[-1].append(token)
            last = bit
        found.append([tokenizer.decode(piece) for piece in pieces])
    return found


def test_every_assistant_turn_and_nothing_else() -> None:
    talk = [{"role": "system", "content": "S"}, user("a"), bot("b c"), user("d"), bot("é 中")]
    assert learned(CHATML, talk) == [["b c<|im_end|>", "é 中<|im_end|>"]]
    assert learned(QWEN25, talk) == [["b c<|im_end|>", "é 中<|im_end|>"]]
    assert learned(QWEN25, talk[1:]) == [["b c<|im_end|>", "é 中<|im_end|>"]]
    assert learned(CHATML, [*talk, user("not answered")]) == [["b c<|im_end|>", "é 中<|im_end|>"]]


def test_calls_are_learned_and_results_of_tools_are_not() -> None:
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    results = [{"role": "tool", "content": "7"}, {"role": "tool", "content": "8"}]
    talk = [user("q"), bot("", tool_calls=[call]), *results, bot("done")]
    (pieces,) = learned(QWEN25, talk, tools=[{"function": {"name": "add"}}])
    assert pieces == ['<call>{"name": "add", "arguments": {"a": 1}}</call><|im_end|>', "done<|im_end|>"]


def test_a_template_that_removes_reasoning_gives_a_row_per_turn() -> None:
    talk = [user("a"), bot("<think>\nx\n</think>\n\nb"), user("c"), bot("<think>\ny\n</think>\n\nd")]
    assert learned(QWEN3, talk) == [
        ["<think>\nx\n</think>\n\nb<|im_end|>"],
        ["<think>\ny\n</think>\n\nd<|im_end|>"],
    ]


def test_thinking_switched_off_is_part_of_the_prompt() -> None:
    assert learned(QWEN3, [user("a"), bot("b")]) == [["<think>\n\n</think>\n\nb<|im_end|>"]]
    assert learned(QWEN3, [user("a"), bot("b")], thinking=False) == [["b<|im_end|>"]]


def test_a_forced_start_that_the_turn_does_not_show() -> None:
    assert learned(FORCED, [user("a"), bot("b")]) == [["b<|im_end|>"]]
    assert learned(FORCED, [user("a"), bot("<think>\nb")]) == [["b<|im_end|>"]]


@pytest.mark.parametrize(
    ("template", "talk", "part"),
    [
        (CHATML, [user("a")], "no assistant turn"),
        (CHATML, [bot("a"), user("b"), bot("c")], "starts with the assistant"),
        ("{{ raise_exception('roles must alternate') }}", [user("a"), bot("b")], "roles must alternate"),
        ("{{ messages[0].content }}", [user("a"), bot("b")], "prints nothing of turn 2"),
    ],
)
def test_conversations_that_cannot_be_learned(template: str, talk: list, part: str) -> None:
    with pytest.raises(turns.TurnsError, match=part):
        learned(template, talk)


def test_upstream_learns_the_same_turns_where_it_can_and_refuses_the_rest(tmp_path: Path) -> None:
    """The facts that turns.py states about verl's dataset."""
    from omegaconf import OmegaConf
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    def upstream(template: str, messages: list) -> list[int]:
        pq.write_table(pa.table({"messages": [messages]}), tmp_path / "d.parquet")
        config = OmegaConf.create({"pad_mode": "no_padding", "max_length": 4096})
        return MultiTurnSFTDataset(str(tmp_path / "d.parquet"), tokenizer, config)[0]["loss_mask"].tolist()

    tokenizer = tiny_tokenizer()
    talk = [user("a"), bot("b"), user("c"), bot("d")]
    (ours,) = turns.encode(tokenizer, turns.learned(turns.renderer(tokenizer, None, None), talk))
    theirs = upstream(CHATML, talk)
    assert sum(theirs) == sum(ours[1]) + 2
    line_break = tokenizer.encode("\n")[0]
    assert [token for token, a, b in zip(ours[0], ours[1], theirs, strict=True) if a != b] == [line_break] * 2
    tokenizer.chat_template = QWEN3
    with pytest.raises(AssertionError, match="apply_chat_template to each turn separately"):
        upstream(QWEN3, talk)


def rows_file(folder: Path, talks: list[list]) -> Path:
    pq.write_table(pa.table({"messages": talks}), folder / "train.parquet")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    return folder / "train.parquet"


def test_length_policies(tmp_path: Path) -> None:
    path = rows_file(tmp_path, [[user("a"), bot("b" * n)] for n in (1, 5, 30)] + [[user("a" * 60), bot("b")]])
    settings = Settings(str(tmp_path / "tokenizer"), max_length=50)
    with pytest.raises(DataError) as refused:
        tokenize(path, settings)
    assert len(refused.value.problems) == 2
    assert "train row 3 ('a'): " in refused.value.problems[0]
    dropped = tokenize(path, Settings(settings.tokenizer, 50, "drop"))[1]
    assert (dropped.samples, dropped.dropped, dropped.cut, dropped.over) == (2, 2, 0, 2)
    file, cut = tokenize(path, Settings(settings.tokenizer, 50, "cut"))
    # Row 4 would lose its whole answer: nothing of it could be learned.
    assert (cut.samples, cut.dropped, cut.cut) == (3, 1, 1)
    table = pq.read_table(file)
    assert [len(ids) for ids in table["input_ids"].to_pylist()][2] == 50
    assert cut.tokens == sum(map(len, table["input_ids"].to_pylist()))
    assert cut.learned == sum(map(sum, table["loss_mask"].to_pylist()))


def test_an_edited_tokenizer_meets_no_old_cache(tmp_path: Path) -> None:
    path = rows_file(tmp_path, [[user("a"), bot("b")]])
    settings = Settings(str(tmp_path / "tokenizer"), 50)
    first = tokenize(path, settings)[0]
    assert tokenize(path, settings)[0] == first
    tiny_tokenizer(template=QWEN25).save_pretrained(tmp_path / "tokenizer")
    assert tokenize(path, settings)[0] != first


class Config(dict):
    __getattr__ = dict.__getitem__


def dataset(folder: Path, *, seed: int = 1, validation: bool = False) -> TokenDataset:
    path = str(folder / "tokens.parquet")
    config = Config(train_files="other" if validation else path, train_batch_size=4, seed=seed)
    return TokenDataset(path, None, config)


def test_dataset_order_and_validation_of_every_row(tmp_path: Path) -> None:
    table = {"input_ids": [[n] * (n + 1) for n in range(10)], "loss_mask": [[1] * (n + 1) for n in range(10)]}
    pq.write_table(pa.table(table), tmp_path / "tokens.parquet")

    def firsts(data: TokenDataset) -> list[int]:
        return [int(data[n]["input_ids"][0]) for n in range(len(data))]

    one, two = firsts(dataset(tmp_path)), firsts(dataset(tmp_path, seed=2))
    assert sorted(one) == sorted(two) == list(range(10))
    assert one != two
    assert one == firsts(dataset(tmp_path))
    held_out = dataset(tmp_path, validation=True)
    assert len(held_out) == 12
    real = [item for item in (held_out[n] for n in range(12)) if int(item["loss_mask"].sum())]
    assert sorted(int(item["input_ids"][0]) for item in real) == list(range(10))
    item = dataset(tmp_path)[0]
    assert item["position_ids"].tolist() == list(range(len(item["input_ids"])))
    assert item["input_ids"].dtype == torch.int64


@pytest.mark.parametrize(("rows", "batch"), [(64, 16), (5, 16), (17, 8), (1, 1)])
def test_batches_hold_nearly_the_same_number_of_rows(rows: int, batch: int) -> None:
    dealt = deal(rows, batch).reshape(-1, batch)
    real = (dealt >= 0).sum(axis=1)
    assert real.max() - real.min() <= 1
    assert sorted(dealt[dealt >= 0]) == list(range(rows))
