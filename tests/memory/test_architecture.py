"""Counts against transformers' and PEFT's own modules, on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification

from common.memory import UnknownArchitectureError, lora_parameters, read_shape
from common.memory.architecture import FAMILIES, value_shape
from common.memory.models import known_models

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text")),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {"attention_bias": True, "head_dim": 32}),
    ("gemma2", {"attention_bias": True, "head_dim": 16}),
    ("mixtral", {"num_local_experts": 4}),
    ("qwen2_moe", {**MOE, "shared_expert_intermediate_size": 48}),
    ("qwen3_moe", {**MOE, "mlp_only_layers": [1], "num_hidden_layers": 4}),
    ("qwen3_moe", {**MOE, "decoder_sparse_step": 2}),
]  # fmt: skip
NAMES = [" ".join([family, *map(str, more)]) for family, more in CASES]


def on_meta(kind: Any, config: Any) -> Any:
    with torch.device("meta"):
        return kind.from_config(config)


def size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("family", "more"), CASES, ids=NAMES)
def test_weights_of_the_real_model(family: str, more: dict[str, Any]) -> None:
    config = AutoConfig.for_model(family, **{**SMALL, **more})
    model = on_meta(AutoModelForCausalLM, config)
    # As saved, and with everything left out that is the family's default.
    shape = read_shape(config.to_dict())
    assert shape == read_shape({**config.to_diff_dict(), "model_type": family})
    assert shape.parameters == size(model)
    assert shape.layer == max(size(layer) for layer in model.model.layers)
    assert shape.largest == max(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("family", "more"), CASES, ids=NAMES)
def test_weights_of_the_real_adapter(family: str, more: dict[str, Any]) -> None:
    config = AutoConfig.for_model(family, **{**SMALL, **more})
    with torch.device("meta"):
        adapted = get_peft_model(
            on_meta(AutoModelForCausalLM, config),
            LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    learned = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert lora_parameters(read_shape(config.to_dict()), 8) == learned


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], r".*\.layers\.\d+\.(self_attn\.o|mlp\.down)_proj"])
def test_adapter_of_chosen_modules(targets: str | list[str]) -> None:
    config = AutoConfig.for_model("qwen2", **SMALL)
    with torch.device("meta"):
        adapted = get_peft_model(
            on_meta(AutoModelForCausalLM, config),
            LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"),
        )
    learned = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert lora_parameters(read_shape(config.to_dict()), 4, targets) == learned > 0


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_weights_of_a_critic(family: str) -> None:
    config = AutoConfig.for_model(family, **SMALL)
    config.num_labels = 1
    critic = on_meta(AutoModelForTokenClassification, config)
    assert value_shape(read_shape(config.to_dict())).parameters == size(critic)


def test_known_models_have_their_published_sizes() -> None:
    # arXiv 2412.15115, table 1, in billions
    published = {"0.5B": 0.49, "1.5B": 1.54, "3B": 3.09, "7B": 7.61, "14B": 14.7, "32B": 32.5}
    found = {
        name.split("-")[-1]: read_shape(config).parameters / 1e9 for name, config in known_models().items()
    }
    assert found == pytest.approx(published, rel=0.011)


def test_an_unknown_architecture_says_so_in_one_line() -> None:
    with pytest.raises(
        UnknownArchitectureError, match=r"model_type 'mamba2' is not known.*known: llama"
    ) as caught:
        read_shape({"model_type": "mamba2"})
    assert "\n" not in str(caught.value)
    with pytest.raises(UnknownArchitectureError, match="'\\(missing\\)'"):
        read_shape({})
    with pytest.raises(UnknownArchitectureError, match="lacks hidden_size, vocab_size"):
        read_shape(
            {
                "model_type": "llama",
                **{k: v for k, v in SMALL.items() if k not in ("hidden_size", "vocab_size")},
            }
        )


def test_every_known_family_is_tested() -> None:
    assert {family for family, _ in CASES} == set(FAMILIES)
