"""LoRA's lean forward pass against PEFT's own: values, gradients, and where it has to give way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from common.cpu import lean_lora

SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
IDS = torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(0))


def adapted(dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """A Qwen2 (its projections have a bias) with an adapter that has learned something."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen2", **SHAPE)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype).train()
    wanted = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", **more)
    model = get_peft_model(model, wanted, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def pair(dtype: torch.dtype = torch.float32, **more: Any) -> tuple[Any, Any]:
    """PEFT's model and the lean one, of the same weights."""
    theirs = adapted(dtype, **more)
    ours = copy.deepcopy(theirs)
    lean_lora.install(ours)
    return theirs, ours


def learn(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    logits = model(input_ids=IDS, use_cache=False).logits.float()
    torch.log_softmax(logits, -1)[..., 7].sum().backward()
    return logits, {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_values_and_gradients_are_pefts(dtype: torch.dtype, near: float) -> None:
    theirs, ours = pair(dtype)
    (expected, slopes), (found, own) = learn(theirs), learn(ours)
    torch.testing.assert_close(found, expected, rtol=near, atol=near)
    assert own.keys() == slopes.keys()
    assert len(own) == 2 * 2 * 7
    for name, slope in slopes.items():
        assert (own[name] - slope).norm() <= near * slope.norm(), name


def test_it_is_really_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = lean_lora._LoRALinear.apply
    monkeypatch.setattr(lean_lora._LoRALinear, "apply", lambda *given: calls.append(1) or real(*given))
    _, ours = pair()
    learn(ours)
    assert len(calls) == 2 * 7


def test_with_the_adapter_off_or_merged_it_is_the_other_model() -> None:
    theirs, ours = pair()
    with torch.no_grad():
        on = ours(input_ids=IDS).logits
        with ours.disable_adapter(), theirs.disable_adapter():
            off = ours(input_ids=IDS).logits
            assert torch.equal(off, theirs(input_ids=IDS).logits)
        assert not torch.allclose(on, off, atol=1e-3)
        ours.merge_adapter()
        torch.testing.assert_close(ours(input_ids=IDS).logits, on, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("more", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_more_than_lora_is_left_to_peft(more: dict[str, Any]) -> None:
    theirs, ours = pair(**more)
    torch.manual_seed(1)
    expected, slopes = learn(theirs)
    torch.manual_seed(1)
    found, own = learn(ours)
    assert torch.equal(found, expected)
    assert all(torch.equal(own[name], slope) for name, slope in slopes.items())


def test_it_keeps_no_more_than_the_input_and_the_low_rank_product() -> None:
    torch.manual_seed(0)
    layer = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(32, 48)), LoraConfig(r=4, target_modules=["0"])
    )
    lean_lora.install(layer)
    weights = {parameter.data_ptr() for parameter in layer.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(10, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    assert sorted(kept.values()) == [10 * 4 * 4, 10 * 32 * 4]
