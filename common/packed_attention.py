"""Attention over packed batches without flash-attn.

A packed batch is one row of several sequences, told apart by their position ids. Upstream gives such rows to
flash-attn; transformers' own ``sdpa`` builds a mask of the whole row and is quadratic in its length. Here each
sequence is one causal ``scaled_dot_product_attention``: linear in the number of sequences, no mask, and equal to
the padded batch. Padded batches and generation go to transformers' ``sdpa`` unchanged.

`install` puts it in the place of ``sdpa`` in this process; verl does so through
``model.external_lib=common.packed_sdpa model.override_config.attn_implementation=sdpa``. It has no name of its own
because verl writes the name into the exported model's config.json, where nobody else would know it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

REPLACED = "sdpa"


@dataclass(frozen=True)
class Segments:
    """The sequences of a packed row, in the place of an attention mask.

    Attributes:
        lengths: tokens of each sequence, in order.
        masks: per sequence None (plain causal) or a (length, length) bool mask, where a sliding window or a
            chunk is shorter than the sequence.
    """

    lengths: list[int]
    masks: list[torch.Tensor | None]


def packed_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: torch.Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor | Segments | None:
    """transformers' mask interface: ``Segments`` for a packed row, else what ``sdpa_mask`` returns."""
    if batch_size == 1 and attention_mask is None and q_length == kv_length > 1 and not use_vmap:
        found = find_segments(mask_function, q_length, device)
        if found is not None:
            return found
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        use_vmap=use_vmap,
        device=device,
        **kwargs,
    )


def find_segments(mask_function: Any, length: int, device: torch.device | str) -> Segments | None:
    """Split a row where a token cannot see the one before it; None when the pattern is not causal.

    Args:
        mask_function: transformers' index-based ``(batch, head, query, key) -> bool``.
    """
    zero = torch.zeros((), dtype=torch.long, device=device)
    index = torch.arange(length, device=device)
    if bool(mask_function(zero, zero, index[:-1], index[1:]).any()):
        return None
    linked = mask_function(zero, zero, index[1:], index[:-1])
    ends = [*(torch.nonzero(~linked).flatten() + 1).tolist(), length]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    first = torch.tensor([0, *ends[:-1]], device=device)
    last = torch.tensor(ends, device=device) - 1
    whole = mask_function(zero, zero, last, first).tolist()
    masks = [
        None
        if seen
        else mask_function(zero, zero, index[end - size : end, None], index[None, end - size : end])
        for end, size, seen in zip(ends, lengths, whole, strict=True)
    ]
    return Segments(lengths, masks)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | Segments | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: one causal attention per sequence of a packed row.

    Args:
        query: (1, heads, tokens, head_dim); key, value: (1, kv_heads, tokens, head_dim).

    Returns:
        (1, tokens, heads, head_dim) and None for the weights.

    Raises:
        ValueError: the model's attention has a feature that scaled_dot_product_attention lacks.
    """
    unknown = [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]
    if unknown:
        raise ValueError(
            f"sdpa cannot compute this model's attention ({', '.join(unknown)}): install flash-attn, or set "
            "model.override_config.attn_implementation=eager and model.use_remove_padding=False"
        )
    ranks, position_ids = _sequence_parallel_size(), kwargs.get("position_ids")
    if ranks > 1 and position_ids is not None:
        return _ulysses(module, query, key, value, position_ids, ranks, dropout, scaling, kwargs), None
    if not isinstance(attention_mask, Segments):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    return attend(query, key, value, attention_mask, dropout, scaling), None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> torch.Tensor:
    """Causal attention inside each sequence; shapes as in `packed_attention`."""
    # split(), not slices: its backward is one concatenation instead of a full-size sum per sequence.
    parts = (tensor.split(segments.lengths, dim=2) for tensor in (query, key, value))
    outputs = [
        scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scaling, enable_gqa=True
        ).transpose(1, 2)
        for q, k, v, mask in zip(*parts, segments.masks, strict=True)
    ]
    return torch.cat(outputs, dim=1)


def _sequence_parallel_size() -> int:
    try:
        from verl.utils.ulysses import get_ulysses_sequence_parallel_world_size
    except ImportError:  # used without verl
        return 1
    return int(get_ulysses_sequence_parallel_world_size())


def _ulysses(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    position_ids: torch.Tensor,
    ranks: int,
    dropout: float,
    scaling: float | None,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Sequence parallelism: all tokens of some heads instead of some tokens of all heads.

    The counterpart of ``verl.models.transformers.monkey_patch._ulysses_flash_attention_forward``, which verl
    installs for flash-attn alone; without it each rank would attend to its own tokens only.
    """
    from verl.models.transformers.monkey_patch import repeat_kv
    from verl.utils.ulysses import (
        gather_heads_scatter_seq,
        gather_seq_scatter_heads,
        get_ulysses_sequence_parallel_group,
    )

    # (1, tokens / ranks, heads, head_dim), verl's layout
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    repeats = max(ranks // key.size(2), 1)
    key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    query, key, value = (
        gather_seq_scatter_heads(tensor, seq_dim=1, head_dim=2).transpose(1, 2)
        for tensor in (query, key, value)
    )
    shards = [torch.empty_like(position_ids) for _ in range(ranks)]
    torch.distributed.all_gather(
        shards, position_ids.contiguous(), group=get_ulysses_sequence_parallel_group()
    )
    position = torch.cat(shards, dim=-1).flatten()
    ends = [*(torch.nonzero(position[1:] != position[:-1] + 1).flatten() + 1).tolist(), len(position)]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    window = kwargs.get("sliding_window")
    if window and max(lengths) > window:
        raise ValueError(f"packed sdpa: a sliding window of {window} tokens needs SEQUENCE_PARALLEL_SIZE=1")
    output = attend(query, key, value, Segments(lengths, [None] * len(lengths)), dropout, scaling)
    return gather_heads_scatter_seq(output, seq_dim=1, head_dim=2)


def install(name: str = REPLACED) -> None:
    """Make it transformers' attention *name* in this process; calling it again changes nothing."""
    ALL_ATTENTION_FUNCTIONS.register(name, packed_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, packed_mask)
