"""Parameter counts and layer shapes of a decoder from its config.json alone.

Source: the modules of transformers 5.9.0 (``transformers/models/<family>/modeling_<family>.py``); the tests compare
every family with the real model on the meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class UnknownArchitectureError(ValueError):
    """The memory of this model cannot be computed; the message is one line."""


# What config.json may leave out, by model_type: transformers' defaults that change a count.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8},
    "qwen2": {"num_key_value_heads": 32, "qkv_bias": True},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128, "qk_norm": True},
    "phi3": {},
    "gemma": {"num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True},
    "gemma2": {"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True, "norms": 4},
    "gemma3_text": {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "tie_word_embeddings": True,
        "norms": 4,
        "qk_norm": True,
    },
    "mixtral": {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_key_value_heads": 16,
        "qkv_bias": True,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    "qwen3_moe": {
        "num_key_value_heads": 4,
        "head_dim": None,
        "qk_norm": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
}
_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


@dataclass(frozen=True)
class Tensor:
    """One weight: the module it belongs to, its shape, and how often the model has it."""

    module: str
    shape: tuple[int, ...]
    count: int

    @property
    def numel(self) -> int:
        """Elements of one copy."""
        total = 1
        for size in self.shape:
            total *= size
        return total


@dataclass(frozen=True)
class Shape:
    """A decoder, as far as memory depends on it. Sizes in elements.

    Attributes:
        tensors: every weight once; tied embeddings count once.
        experts: experts of an MoE layer, 0 in a dense model; `active` of them see a token.
        moe_layers: how many of `layers` are MoE layers.
        ffn: width of a dense MLP; `expert_ffn` of an expert, `shared_ffn` of the shared one.
    """

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool
    qk_norm: bool
    tensors: tuple[Tensor, ...]
    experts: int = 0
    active: int = 0
    moe_layers: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0

    @property
    def parameters(self) -> int:
        """All weights."""
        return sum(tensor.numel * tensor.count for tensor in self.tensors)

    @property
    def embedding(self) -> int:
        """Elements of the embedding, and of an untied head."""
        return self.vocab * self.hidden

    @property
    def layer(self) -> int:
        """Weights of the largest decoder layer."""
        size = dict.fromkeys(("common", "dense", "moe"), 0)
        for tensor in self.tensors:
            if tensor.module.startswith("layers."):
                kind = (
                    "moe" if ".moe." in tensor.module else "dense" if ".mlp." in tensor.module else "common"
                )
                size[kind] += tensor.numel * tensor.count
        dense, moe = self.layers - self.moe_layers, self.moe_layers
        return size["common"] // self.layers + max(size["dense"] // max(dense, 1), size["moe"] // max(moe, 1))

    @property
    def largest(self) -> int:
        """Elements of the largest single tensor."""
        return max(tensor.numel for tensor in self.tensors)


def value_shape(shape: Shape) -> Shape:
    """The same decoder with one value per token in place of the vocabulary: PPO's critic, a reward model.

    Source: ``AutoModelForTokenClassification`` with ``num_labels=1``, which verl's ``load_valuehead_model`` loads.
    """
    kept = [t for t in shape.tensors if t.module != "lm_head"]
    kept += [Tensor("score", (1, shape.hidden), 1), Tensor("score.bias", (1,), 1)]
    return Shape(**{**vars(shape), "tensors": tuple(kept), "tied": False})


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape that config.json describes.

    Args:
        config: the content of config.json.

    Raises:
        UnknownArchitectureError: a family whose layers are not known here, or a size that is missing.
    """
    family = str(config.get("model_type", ""))
    if family not in FAMILIES:
        raise UnknownArchitectureError(
            f"config.json: model_type '{family or '(missing)'}' is not known to the memory estimate "
            f"(known: {', '.join(FAMILIES)})"
        )
    missing = [name for name in _NEEDED if not isinstance(config.get(name), int)]
    if missing:
        raise UnknownArchitectureError(f"config.json of this {family} model lacks {', '.join(missing)}")
    known = {**FAMILIES[family], **{key: value for key, value in config.items() if value is not None}}
    hidden, layers, heads = known["hidden_size"], known["num_hidden_layers"], known["num_attention_heads"]
    kv_heads = known.get("num_key_value_heads") or heads
    if config.get("num_key_value_heads", 0) is None:
        kv_heads = heads
    head_dim = known.get("head_dim") or hidden // heads
    tied = bool(known.get("tie_word_embeddings", False))
    moe = _moe_layers(known, family, layers)
    tensors = [
        Tensor("embed_tokens", (known["vocab_size"], hidden), 1),
        *_attention(known, family, hidden, layers, heads * head_dim, kv_heads * head_dim, head_dim),
        *_dense_mlp(known, hidden, layers - moe),
        *(_experts(known, family, hidden, moe) if moe else []),
        Tensor("layers.norm", (hidden,), layers * known.get("norms", 2)),
        Tensor("norm", (hidden,), 1),
    ]
    if not tied:
        tensors.append(Tensor("lm_head", (known["vocab_size"], hidden), 1))
    return Shape(
        family=family,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=known["intermediate_size"],
        vocab=known["vocab_size"],
        tied=tied,
        qk_norm=bool(known.get("qk_norm", False)),
        tensors=tuple(tensor for tensor in tensors if tensor.count),
        experts=_expert_count(known) if moe else 0,
        active=known.get("num_experts_per_tok", 0) if moe else 0,
        moe_layers=moe,
        expert_ffn=_expert_ffn(known, family) if moe else 0,
        shared_ffn=known.get("shared_expert_intermediate_size", 0) if moe and family == "qwen2_moe" else 0,
    )


def _expert_count(known: Mapping[str, Any]) -> int:
    return int(known.get("num_local_experts") or known.get("num_experts") or 0)


def _expert_ffn(known: Mapping[str, Any], family: str) -> int:
    return int(known["intermediate_size"] if family == "mixtral" else known["moe_intermediate_size"])


def _moe_layers(known: Mapping[str, Any], family: str, layers: int) -> int:
    """How many layers route tokens to experts (``mlp_only_layers``, ``decoder_sparse_step``)."""
    if not _expert_count(known):
        return 0
    if family == "mixtral":
        return layers
    dense, step = set(known.get("mlp_only_layers") or []), known.get("decoder_sparse_step", 1)
    return sum(layer not in dense and (layer + 1) % step == 0 for layer in range(layers))


def _attention(
    known: Mapping[str, Any], family: str, hidden: int, layers: int, query: int, key: int, head_dim: int
) -> list[Tensor]:
    projections = [("q_proj", query, hidden), ("k_proj", key, hidden), ("v_proj", key, hidden)]
    output = ("o_proj", hidden, query)
    if family == "phi3":
        projections = [("qkv_proj", query + 2 * key, hidden)]
    found = [
        Tensor(f"layers.self_attn.{name}", (out, width), layers)
        for name, out, width in [*projections, output]
    ]
    # Qwen2 has biases on q, k and v whatever its config says; attention_bias puts them on o too.
    biased = [
        *(projections if known.get("qkv_bias") else []),
        *([*projections, output] if known.get("attention_bias") and not known.get("qkv_bias") else []),
    ]
    if family in ("mistral", "mixtral", "phi3"):
        biased = []
    found += [Tensor(f"layers.self_attn.{name}.bias", (out,), layers) for name, out, _ in biased]
    if known.get("qk_norm"):
        found += [Tensor("layers.self_attn.qk_norm", (head_dim,), 2 * layers)]
    return found


def _dense_mlp(known: Mapping[str, Any], hidden: int, layers: int) -> list[Tensor]:
    width = known["intermediate_size"]
    if known["model_type"] == "phi3":
        return [
            Tensor("layers.mlp.gate_up_proj", (2 * width, hidden), layers),
            Tensor("layers.mlp.down_proj", (hidden, width), layers),
        ]
    names = (("gate_proj", width, hidden), ("up_proj", width, hidden), ("down_proj", hidden, width))
    found = [Tensor(f"layers.mlp.{name}", (out, size), layers) for name, out, size in names]
    if known.get("mlp_bias") and known["model_type"] == "llama":
        found += [Tensor(f"layers.mlp.{name}.bias", (out,), layers) for name, out, _ in names]
    return found


def _experts(known: Mapping[str, Any], family: str, hidden: int, layers: int) -> list[Tensor]:
    """transformers 5 keeps the experts of a layer in two tensors."""
    count, width = _expert_count(known), _expert_ffn(known, family)
    found = [
        Tensor("layers.mlp.moe.router", (count, hidden), layers),
        Tensor("layers.mlp.moe.gate_up_proj", (count, 2 * width, hidden), layers),
        Tensor("layers.mlp.moe.down_proj", (count, hidden, width), layers),
    ]
    if family == "qwen2_moe":
        shared = known["shared_expert_intermediate_size"]
        found += [
            Tensor("layers.mlp.moe.shared.gate_proj", (shared, hidden), layers),
            Tensor("layers.mlp.moe.shared.up_proj", (shared, hidden), layers),
            Tensor("layers.mlp.moe.shared.down_proj", (hidden, shared), layers),
            Tensor("layers.mlp.moe.shared.gate", (1, hidden), layers),
        ]
    return found
