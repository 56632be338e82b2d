# ruff: noqa: E501 (one row of a table, one line)
"""What we write, read by verl's own dataset classes and by `show`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.data_utils import DataError, Options, json_to_parquet

pytest.importorskip("verl")
pytestmark = pytest.mark.slow  # importing verl and torch alone takes most of ten seconds

Write = Callable[..., Path]
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}},
    {"type": "function", "function": {"name": "say", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}},
]  # fmt: skip
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "hello"}]},
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "add 1"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"x": 1}}}]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "two"},
        ],
        "tools": TOOLS[:1],
    },
    {
        "messages": [
            {"role": "user", "content": "say hi"},
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "say", "arguments": '{"text": "hi"}'}}],
            },
            {"role": "tool", "content": "ok"},
            {"role": "assistant", "content": "done"},
        ],
        "tools": json.dumps(TOOLS[1:]),
    },
]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_dir)


def sft_items(kind: str, path: Path, tokenizer: Any) -> list[dict[str, Any]]:
    from omegaconf import OmegaConf

    from common.data_utils.verl_datasets import MultiTurnSFTDataset, ToolsSFTDataset

    config = OmegaConf.create({"pad_mode": "no_padding", "max_length": 4096, "truncation": "error"})
    made = {"plain": MultiTurnSFTDataset, "tools": ToolsSFTDataset}[kind]([str(path)], tokenizer, config)
    return [made[number] for number in range(len(made))]


def learned(item: dict[str, Any], tokenizer: Any) -> str:
    return str(tokenizer.decode(item["input_ids"][item["loss_mask"].bool()]))


def test_plain_sft_rows_are_read_by_verls_own_class(
    write_lines: Write, tmp_path: Path, tokenizer: Any
) -> None:
    rows = [
        {"instruction": "do", "input": "this", "output": "done", "system": "s"},
        {"instruction": "x", "output": "y"},
    ]
    json_to_parquet(write_lines(rows), tmp_path / "o.parquet", task="sft")
    items = sft_items("plain", tmp_path / "o.parquet", tokenizer)
    whole = tokenizer.decode(items[0]["input_ids"])
    assert (
        whole
        == "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\ndo\nthis<|im_end|>\n<|im_start|>assistant\ndone<|im_end|>\n"
    )
    assert [learned(item, tokenizer) for item in items] == ["done<|im_end|>\n", "y<|im_end|>\n"]


def test_tool_rows_reach_the_template_without_nulls(
    write_lines: Write, tmp_path: Path, tokenizer: Any
) -> None:
    json_to_parquet(write_lines(CHATS), tmp_path / "o.parquet", task="sft")
    items = sft_items("tools", tmp_path / "o.parquet", tokenizer)
    texts = [tokenizer.decode(item["input_ids"]) for item in items]
    assert "null" not in "".join(texts)
    assert "<tool_call>" not in texts[0]
    assert json.dumps(TOOLS[0]) in texts[1]
    assert json.dumps(TOOLS[1]) not in texts[1]
    assert '<tool_call>{"name": "say", "arguments": {"text": "hi"}}</tool_call>' in texts[2]
    assert learned(items[1], tokenizer) == (
        '<tool_call>{"name": "add", "arguments": {"x": 1}}</tool_call><|im_end|>\ntwo<|im_end|>\n'
    )


def test_rl_rows_are_read_by_verls_own_class(
    write_lines: Write, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    from common.data_utils.show import rl_view

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    rows = [{"question": f"q{n}", "answer": f"so\n#### {n}", "level": n} for n in range(4)]
    rows.append({"question": "long " * 100, "answer": "so\n#### 9", "level": 0})
    options = {"system_prompt": "s", "prompt_template": "{question} Think.", "agent_name": "tool_agent"}
    json_to_parquet(write_lines(rows), tmp_path / "o.parquet", task="rl", **options)
    config = OmegaConf.create(
        {"max_prompt_length": 100, "cache_dir": str(tmp_path / "verl"), "filter_overlong_prompts_workers": 1}
    )
    made = RLHFDataset([str(tmp_path / "o.parquet")], tokenizer, config)
    assert len(made) == 4
    first = made[1]
    assert first["raw_prompt"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q1 Think."},
    ]
    assert (first["data_source"], first["agent_name"], first["index"]) == ("openai/gsm8k", "tool_agent", 1)
    assert first["reward_model"] == {"style": "rule", "ground_truth": "1"}
    assert first["extra_info"] == {"index": 1, "level": 1, "answer": "so\n#### 1", "split": "train"}
    batch = collate_fn([made[number] for number in range(4)])
    assert batch["dummy_tensor"].shape == (4, 1)
    ids = rl_view({"prompt": first["raw_prompt"]}, tokenizer).ids
    reference = tokenizer.apply_chat_template(first["raw_prompt"], add_generation_prompt=True, tokenize=True)
    assert ids == list(reference["input_ids"] if hasattr(reference, "keys") else reference)


def test_show_sft_is_what_verl_learns(
    write_lines: Write, tmp_path: Path, tokenizer_dir: Path, tokenizer: Any
) -> None:
    from common.data_utils.show import show

    source = write_lines(CHATS)
    json_to_parquet(source, tmp_path / "o.parquet", task="sft")
    values, text = show(str(source), "sft", str(tokenizer_dir), Options(), row=2)
    item = sft_items("tools", tmp_path / "o.parquet", tokenizer)[1]
    view = values["views"][0]
    assert (view["ids"], view["mask"]) == (item["input_ids"].tolist(), item["loss_mask"].tolist())
    assert "[[two<|im_end|>\n]]" in text
    _, coloured = show(str(source), "sft", str(tokenizer_dir), Options(), row=2, colour=True)
    assert "\x1b[32mtwo<|im_end|>\n\x1b[0m" in coloured
    _, listed = show(str(source), "sft", str(tokenizer_dir), Options(), row=1, tokens=True)
    assert listed.count("learn ") == len("hello") + 2


def test_show_preference_masks_the_prompt(write_lines: Write, tokenizer_dir: Path) -> None:
    from common.data_utils.show import show

    source = write_lines([{"prompt": "q", "chosen": "good", "rejected": "bad"}])
    values, text = show(str(source), "preference", str(tokenizer_dir), Options())
    assert [view["title"] for view in values["views"]] == ["chosen", "rejected"]
    assert "<|im_start|>assistant\n[[good<|im_end|>\n]]" in text
    assert "<|im_start|>assistant\n[[bad<|im_end|>\n]]" in text


def test_show_rl_ends_where_the_model_speaks(write_lines: Write, tokenizer_dir: Path) -> None:
    from common.data_utils.show import show

    source = write_lines([{"question": "2 + 2?", "answer": "so\n#### 4"}])
    _, text = show(str(source), "rl", str(tokenizer_dir), Options())
    assert "2 + 2?<|im_end|>\n<|im_start|>assistant\n" in text
    assert "ground truth: '4', data_source 'openai/gsm8k'" in text


def test_show_refuses_in_one_line(write_lines: Write, tokenizer_dir: Path, tmp_path: Path) -> None:
    from common.data_utils.show import show

    source = write_lines([{"question": "q", "answer": ""}, {"question": "q", "answer": "a"}])
    for row, text in ((1, "row 1: answer: is empty"), (9, "has no row 9")):
        with pytest.raises(DataError, match=text):
            show(str(source), "sft", str(tokenizer_dir), Options(), row=row)
    with pytest.raises(DataError, match="cannot be loaded"):
        show(str(source), "sft", str(tmp_path / "nothing"), Options(), row=2)
