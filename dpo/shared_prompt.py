"""Attention for pairs that share their prompt: the attention implementation ``shared_prompt``.

A packed row holds pairs as ``shared chosen rejected`` (dpo/batches.py). Both answers attend to the shared tokens
and to themselves, never to each other; the shared tokens are computed once, forward and backward. The result equals
that of two separate rows. Rows without ``pair_segments`` go to ``packed_sdpa`` (common/packed_attention.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from common.packed_attention import packed_attention, packed_mask

NAME = "shared_prompt"
_UNKNOWN = ("softcap", "s_aux")


def why_not(config: Any, max_length: int) -> str:
    """What this model's attention has that a shared prompt cannot honour; "" when there is nothing."""
    text = config.get_text_config()
    if text is not config:
        return "it is a multimodal model"
    if set(getattr(config, "layer_types", None) or ["full_attention"]) - {
        "full_attention",
        "sliding_attention",
    }:
        return "it has layers without softmax attention"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < max_length:
        return f"its sliding window of {window} tokens is shorter than MAX_LENGTH={max_length}"
    if getattr(config, "attn_logit_softcapping", None):
        return "it soft-caps attention scores"
    if getattr(config, "model_type", "") in ("gpt_oss", "deepseek_v2", "deepseek_v3"):
        return f"the attention of {config.model_type} is of a kind of its own"
    return ""


def shared_prompt_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    pair_segments: list[tuple[int, int, int]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface.

    Args:
        query: (1, heads, tokens, head_dim); key, value: (1, kv_heads, tokens, head_dim).
        pair_segments: tokens of (shared, chosen, rejected) of each pair, in order.

    Returns:
        (1, tokens, heads, head_dim) and None for the weights.

    Raises:
        ValueError: the model's attention has a feature that scaled_dot_product_attention lacks.
    """
    if pair_segments is None:
        return packed_attention(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    unknown = [name for name in _UNKNOWN if kwargs.get(name) is not None]
    if unknown:
        raise ValueError(
            f"{NAME} cannot compute this model's attention ({', '.join(unknown)}): SHARE_PROMPT=false"
        )
    sizes = [size for pair in pair_segments for size in pair]
    # split(), not slices: its backward is one concatenation instead of a full-size sum per piece.
    q, k, v = (tensor.split(sizes, dim=2) for tensor in (query, key, value))
    outputs = []
    for at in range(0, len(sizes), 3):
        shared, left, right = at, at + 1, at + 2
        # (shared, chosen) is a plain causal sequence; the rejected answer sees the shared tokens and itself.
        query_one, key_one, value_one = (_joined(x[shared], x[left]) for x in (q, k, v))
        outputs.append(_causal(query_one, key_one, value_one, dropout, scaling))
        key_two, value_two = (_joined(x[shared], x[right]) for x in (k, v))
        outputs.append(_causal(q[right], key_two, value_two, dropout, scaling))
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1), None


def _joined(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat((first, second), dim=2)


def _causal(query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None) -> Tensor:
    """Causal attention of the last queries of a sequence: the last query sees every key."""
    size, keys = query.shape[2], key.shape[2]
    groups = query.shape[1] // key.shape[1]
    mask = None
    if size < keys:
        mask = torch.ones(size, keys, dtype=torch.bool, device=query.device).tril(keys - size)
    gqa = groups > 1 and mask is None
    if groups > 1 and not gqa:
        # With a mask enable_gqa would take the slow kernel.
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=gqa,
    )


def register() -> None:
    """Make the name known to transformers; calling it again changes nothing."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, shared_prompt_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, packed_mask)


register()
