"""packed_sdpa: a packed row gives the loss and gradients of the padded batch, for several attention shapes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from common import packed_attention
from common.packed_attention import Segments

NAME = "packed_sdpa"
packed_attention.install(NAME)

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100}
LENGTHS = [5, 1, 17, 5, 9]
SHAPES = {
    "all heads": LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=4),
    "grouped heads": LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2),
    "one kv head, biases": Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=1),
    "head_dim of its own": Qwen3Config(**SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=32),
    "window shorter than a sequence": MistralConfig(
        **SIZES, num_attention_heads=4, num_key_value_heads=2, sliding_window=6
    ),
}


def model_of(config: object, attention: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    return model.train()


def packed(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    position = torch.cat([torch.arange(len(row)) for row in rows])
    return {"input_ids": torch.cat(rows)[None], "position_ids": position[None]}


def padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


def rows_of(lengths: list[int]) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randint(1, 100, (length,)) for length in lengths]


def loss_and_gradients(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], rows: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Mean next-token loss over all sequences, the logits of real tokens, and every parameter's gradient."""
    logits = model(**batch, use_cache=False).logits
    if "attention_mask" in batch:
        logits = logits[batch["attention_mask"].bool()]
    logits = logits.reshape(-1, logits.shape[-1])
    parts = [
        (part[:-1], row[1:]) for part, row in zip(logits.split([len(r) for r in rows]), rows, strict=True)
    ]
    loss = torch.nn.functional.cross_entropy(
        torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])
    )
    model.zero_grad()
    loss.backward()
    return loss.detach(), logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_equals_padded_in_loss_and_gradient(shape: str) -> None:
    rows = rows_of(LENGTHS)
    reference = loss_and_gradients(model_of(SHAPES[shape], "eager"), padded(rows), rows)
    found = loss_and_gradients(model_of(SHAPES[shape], NAME), packed(rows), rows)
    assert abs(found[0] - reference[0]) < 1e-5
    torch.testing.assert_close(found[1], reference[1], atol=1e-5, rtol=0)
    for name, gradient in reference[2].items():
        torch.testing.assert_close(found[2][name], gradient, atol=1e-5, rtol=0, msg=name)


def test_one_sequence_alone_and_its_place_in_the_row_make_no_difference() -> None:
    rows = rows_of([7, 11])
    model = model_of(SHAPES["grouped heads"], NAME)
    alone = model(**packed(rows[1:]), use_cache=False).logits
    second = model(**packed(rows), use_cache=False).logits[:, 7:]
    torch.testing.assert_close(second, alone, atol=1e-6, rtol=0)


def test_padded_batches_and_generation_stay_right() -> None:
    rows = rows_of([4, 9])
    reference, ours = (model_of(SHAPES["grouped heads"], name).eval() for name in ("eager", NAME))
    batch = padded(rows)
    batch["input_ids"], batch["attention_mask"] = batch["input_ids"].flip(1), batch["attention_mask"].flip(1)
    expected = reference.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(ours.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0), expected)


def test_cost_grows_with_the_tokens_not_with_their_square(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = packed_attention.scaled_dot_product_attention

    def counting(query: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        assert kwargs["attn_mask"] is None
        seen.append(query.shape[2] ** 2)
        return real(query, *args, **kwargs)

    monkeypatch.setattr(packed_attention, "scaled_dot_product_attention", counting)
    model = model_of(SHAPES["grouped heads"], NAME)
    model(**packed(rows_of([8] * 10)), use_cache=False)
    assert sum(seen) == 2 * 10 * 8**2


def test_unknown_attention_features_are_refused() -> None:
    query = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="install flash-attn"):
        packed_attention.packed_attention(
            torch.nn.Module(), query, query, query, Segments([3], [None]), softcap=30.0
        )
