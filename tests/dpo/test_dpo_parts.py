"""The parts of the trainer by themselves: batches, the answer head, shared prompts, lean layers, the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_world import pair_rows, preference_parquet, tiny_model

import common.packed_sdpa  # noqa: F401  (packed rows need it)
from common.cpu import lean_layers
from dpo import answer_head, batches, reference, shared_prompt
from dpo.preference_data import Answer, Limits, Pair, load_pairs


def pair(prompt: int, chosen: int, rejected: int, row: int = 1) -> Pair:
    return Pair(
        row, list(range(prompt)), Answer([100 + n for n in range(chosen)], [True] * chosen),
        Answer([200 + n for n in range(rejected)], [True] * rejected),
    )  # fmt: skip


def test_a_shared_row_says_the_prompt_once() -> None:
    row = batches.shared_row(pair(3, 2, 1))
    assert row.ids == [0, 1, 2, 100, 101, 2, 200]
    assert row.positions == [0, 1, 2, 3, 4, 2, 3]
    assert row.side == [0, 0, 0, 1, 1, 0, 2]
    assert row.segments == (2, 3, 2)
    assert batches.computed_tokens(pair(3, 2, 1), shared=True) == 7
    assert batches.computed_tokens(pair(3, 2, 1), shared=False) == 9


def test_every_pair_comes_once_an_epoch_for_any_number_of_processes() -> None:
    one = batches.PairBatches(22, 4, 0, 1, seed=3)
    two = [batches.PairBatches(22, 4, rank, 2, seed=3) for rank in range(2)]
    whole = list(one.epoch(1))
    assert len(one) == len(whole) == 5
    assert len({number for batch in whole for number in batch}) == 20
    for batch, *parts in zip(whole, *(half.epoch(1) for half in two), strict=True):
        assert sorted(batch) == sorted(number for part in parts for number in part)
        assert [len(part) for part in parts] == [2, 2]
    assert list(one.epoch(1, 3)) == whole[3:]
    assert list(one.epoch(2)) != whole
    assert list(batches.PairBatches(22, 4, 0, 1, seed=4).epoch(1)) != whole


@pytest.mark.parametrize(("ranks", "multiple"), [(1, 1), (2, 1), (2, 3), (3, 2)])
def test_shares_hold_every_index_once_and_fill_up_with_weight_zero(ranks: int, multiple: int) -> None:
    counted: dict[int, float] = {}
    sizes = []
    for rank in range(ranks):
        mine = list(batches.shares(list(range(17)), 6, rank, ranks, multiple))
        sizes.append([len(indices) for indices, _ in mine])
        for indices, weights in mine:
            assert len(indices) % multiple == 0
            for number, weight in zip(indices, weights, strict=True):
                counted[number] = counted.get(number, 0) + weight
    assert counted == dict.fromkeys(range(17), 1.0)
    assert all(size == sizes[0] for size in sizes)


@pytest.mark.parametrize("chunk", [50, 10**6])
@pytest.mark.parametrize("train_head", [True, False])
def test_answer_log_probs_and_gradients(chunk: int, train_head: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(13, 8, requires_grad=True)
    weight = torch.randn(17, 8, requires_grad=train_head)
    labels, above = torch.randint(0, 17, (13,)), torch.randn(13)
    got = answer_head.log_probs(hidden, weight, labels, chunk)
    wanted = (hidden @ weight.t()).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(got, wanted)
    inputs = [hidden, weight] if train_head else [hidden]
    torch.testing.assert_close(
        torch.autograd.grad(got @ above, inputs), torch.autograd.grad(wanted @ above, inputs)
    )


def answer_log_probs(model: Any, pairs: list[Pair], shared: bool) -> torch.Tensor:
    """(pairs, 2) sums, as the engine computes them."""
    from dpo.engine import answer_sums

    batch = batches.collate([(one, torch.zeros(2), 1.0) for one in pairs], shared)
    wanted = torch.roll(batch["loss_mask"].values(), -1) > 0
    labels = torch.where(wanted, torch.roll(batch["input_ids"].values(), -1), answer_head.IGNORE)[None]
    segments = {"pair_segments": [tuple(row) for row in batch["segments"].tolist()]} if shared else {}
    found = model(
        input_ids=batch["input_ids"].values()[None], position_ids=batch["position_ids"].values()[None],
        answer_labels=labels, use_cache=False, **segments,
    ).log_probs  # fmt: skip
    every = torch.zeros(wanted.shape).masked_scatter(wanted, found)
    nested = torch.nested.nested_tensor_from_jagged(every, batch["input_ids"].offsets())
    return answer_sums(nested, batch["side"], shared)[0]


@pytest.mark.parametrize("kind", ["llama", "softcapped", "qwen3"])
@pytest.mark.parametrize("lean", [True, False])
def test_shared_prompts_equal_single_sequences_forward_and_backward(
    kind: str, lean: bool, tmp_path: Path, tokenizer: Any
) -> None:
    from plain_dpo import margins
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

    folder = tiny_model(tmp_path / "model", tokenizer)
    if kind == "qwen3":
        torch.manual_seed(1)
        config = Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, initializer_range=0.2,
        )  # fmt: skip
        Qwen3ForCausalLM(config).save_pretrained(folder)
    pairs = load_pairs(
        preference_parquet(tmp_path / "p.parquet", pair_rows(6)), tokenizer, Limits(256, 128)
    ).pairs

    def gradients(model: Any, sums: torch.Tensor) -> dict[str, torch.Tensor]:
        (sums * torch.tensor([1.0, -1.0])).sum().backward()
        return {name: weight.grad for name, weight in model.named_parameters()}

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    wanted = torch.stack([margins(plain, one) for one in pairs])
    expected = gradients(plain, wanted)
    for shared in (True, False):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        if shared:
            model.config._attn_implementation = shared_prompt.NAME
        if kind == "softcapped":  # not a plain matrix product: the logits come from the model's own forward
            model.config.final_logit_softcapping = 1e9
        if lean:
            lean_layers.install(model)
        answer_head.install(model)
        got = answer_log_probs(model, pairs, shared)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)
        for name, gradient in gradients(model, got).items():
            scale = expected[name].abs().max()
            torch.testing.assert_close(
                gradient / scale, expected[name] / scale, rtol=1e-4, atol=1e-5, msg=name
            )


def test_models_that_cannot_share_a_prompt_say_why() -> None:
    from transformers import Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config

    assert shared_prompt.why_not(LlamaConfig(), 4096) == ""
    assert shared_prompt.why_not(Qwen2Config(sliding_window=100, use_sliding_window=False), 4096) == ""
    assert "sliding window of 1000 tokens" in shared_prompt.why_not(MistralConfig(sliding_window=1000), 4096)
    assert shared_prompt.why_not(MistralConfig(sliding_window=5000), 4096) == ""
    assert shared_prompt.why_not(Gemma2Config(sliding_window=8192), 4096) == "it soft-caps attention scores"


def test_reference_files_are_found_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_TRAINING_CACHE", str(tmp_path / "cache"))
    model, pairs = tmp_path / "model", [pair(3, 2, 1), pair(4, 1, 2)]
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"1")
    file = reference.cache_file(pairs, model, None, "float32")
    assert reference.load(file, 2) is None
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    reference.save(file, values)
    assert torch.equal(reference.load(reference.cache_file(list(pairs), model, None, "float32"), 2), values)
    others = [
        reference.cache_file(pairs[:1], model, None, "float32"),
        reference.cache_file([pair(3, 2, 2), pairs[1]], model, None, "float32"),
        reference.cache_file(pairs, model, model, "float32"),
        reference.cache_file(pairs, model, None, "bfloat16"),
    ]
    (model / "model.safetensors").write_bytes(b"22")
    others.append(reference.cache_file(pairs, model, None, "float32"))
    assert len({file, *others}) == 6
    file.write_bytes(file.read_bytes()[:50])
    assert reference.load(file, 2) is None
