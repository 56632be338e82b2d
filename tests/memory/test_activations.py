"""What a layer is said to save against what autograd really saves, and the KV cache against vLLM's own count."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from common.cpu import lean_layers, lean_lora
from common.memory.activations import layer_bytes
from common.memory.architecture import read_shape
from common.packed_attention import packed_attention, packed_mask

TOKENS = 512
SMALL = {
    "hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 300, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
CASES = [
    ("llama", {}),
    ("qwen2", {}),
    ("mistral", {}),
    ("qwen3", {"head_dim": 64}),
    ("gemma", {"head_dim": 64}),
    ("phi3", {}),
    ("qwen3_moe", {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}),
    ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def packed() -> Any:
    """Two packed rows through our attention, as on the CPU; transformers' own is put back."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = ALL_ATTENTION_FUNCTIONS["sdpa"], ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS.register("sdpa", packed_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa", packed_mask)
    yield
    ALL_ATTENTION_FUNCTIONS.register("sdpa", before[0])
    ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa", before[1])


def saved_bytes(model: Any, autocast: bool) -> int:
    """Bytes of every storage that autograd keeps, weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids = torch.randint(0, 256, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    places = torch.arange(TOKENS // 2).repeat(2)[None]
    context = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), context:
        model.model(input_ids=ids, position_ids=places, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


def real_layer(
    family: str, more: dict[str, Any], compute: int, lean: bool, rank: int = 0
) -> tuple[float, Any]:
    """Bytes per token of one layer, with adapters of *rank* or none: the difference that two more layers make."""
    found = {}
    for layers in (1, 3):
        config = AutoConfig.for_model(family, **{**SMALL, **more, "num_hidden_layers": layers})
        dtype = torch.float32 if compute == 4 else torch.bfloat16
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype).train()
        if lean:
            lean_layers.install(model)
        if rank:
            model = get_peft_model(
                model, LoraConfig(r=rank, target_modules="all-linear"), autocast_adapter_dtype=False
            )
            if lean:
                lean_lora.install(model)
            model = model.base_model.model
            model.enable_input_require_grads()
        found[layers] = saved_bytes(model, compute == 2)
    return (found[3] - found[1]) / 2 / TOKENS, read_shape(config.to_dict())


@pytest.mark.parametrize("lean", [False, True], ids=["eager", "lean"])
@pytest.mark.parametrize("compute", [4, 2], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("family", "more"), CASES, ids=[family for family, _ in CASES])
def test_a_layer_saves_what_is_counted(family: str, more: dict[str, Any], compute: int, lean: bool) -> None:
    real, shape = real_layer(family, more, compute, lean)
    said = layer_bytes(SimpleNamespace(shape=shape, compute=compute, lean=lean, adapter=0))  # type: ignore[arg-type]
    assert said == pytest.approx(real, rel=0.05 if shape.experts else 0.01)


@pytest.mark.parametrize("lean", [False, True], ids=["eager", "lean"])
@pytest.mark.parametrize("compute", [4, 2], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_a_layer_with_adapters_saves_what_is_counted(family: str, compute: int, lean: bool) -> None:
    real, shape = real_layer(family, {}, compute, lean, rank=8)
    said = layer_bytes(SimpleNamespace(shape=shape, compute=compute, lean=lean, adapter=1))  # type: ignore[arg-type]
    low_rank = compute * 8 * 7  # what every lora_A gives; `saved` counts it by the adapter's weights
    assert said + low_rank == pytest.approx(real, rel=0.01)
