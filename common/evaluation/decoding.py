"""Token by token on a transformers model: a seed per row, rows leave the batch when they end.

`generate()` keeps a batch until its longest answer ends and draws all rows from one random state, so that an
answer would depend on its neighbours and a resumed run would give others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.evaluation.backends import Sampling

# Rows that have ended are taken out of the cache when they are this share of the batch.
COMPACT_AT = 0.25


def decode_batch(
    model: Any,
    prompts: list[list[int]],
    budgets: list[int],
    seeds: list[int],
    sampling: Sampling,
    stops: list[int],
    pad: int,
) -> Iterator[tuple[int, list[int], bool]]:
    """(row, the answer's tokens, whether a stop token ended it), each row as it ends.

    Args:
        model: a causal LM.
        prompts: token ids, of any lengths; padded on the left.
        budgets: most new tokens of each row.
        seeds: of each row's sampling.
        sampling: how to draw.
        stops: token ids that end an answer; the one that ends it is part of the tokens.
        pad: token id to pad with.
    """
    import torch
    from transformers import DynamicCache

    width = max(map(len, prompts))
    device = model.device
    rows = [[pad] * (width - len(ids)) + ids for ids in prompts]
    ids = torch.tensor(rows, device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    draws = [_generator(seed, device) for seed in seeds]
    stop = torch.tensor(stops, device=device)
    alive = list(range(len(prompts)))  # batch position -> row
    ended = [False] * len(prompts)
    tokens: list[list[int]] = [[] for _ in prompts]
    seen = _seen(ids, mask, model, sampling)
    cache = DynamicCache(config=model.config)
    position = mask.cumsum(-1).clamp(min=1) - 1
    with torch.inference_mode():
        while alive:
            logits = _forward(model, ids, mask, position, cache)
            chosen = _draw(logits, sampling, [draws[row] for row in alive], seen)
            halted = torch.isin(chosen, stop).tolist()
            for place, (row, token) in enumerate(zip(alive, chosen.tolist(), strict=True)):
                if ended[row]:
                    continue
                tokens[row].append(token)
                if halted[place] or len(tokens[row]) >= budgets[row]:
                    ended[row] = True
                    yield row, tokens[row], halted[place]
            if seen is not None:
                seen.scatter_(1, chosen[:, None], True)
            going = [place for place, row in enumerate(alive) if not ended[row]]
            if not going:
                return
            ids, position = chosen[:, None], position[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            if len(alive) - len(going) >= COMPACT_AT * len(alive):
                keep = torch.tensor(going, device=device)
                cache.batch_select_indices(keep)
                ids, position, mask = ids[keep], position[keep], mask[keep]
                seen = seen[keep] if seen is not None else None
                alive = [alive[place] for place in going]


def decode_stream(
    model: Any, prompt: list[int], room: int, sampling: Sampling, stops: list[int]
) -> Iterator[int]:
    """Tokens of one answer as they are drawn, the stop token left out; a new draw at every call."""
    import torch
    from transformers import DynamicCache

    ids = torch.tensor([prompt], device=model.device)
    mask = torch.ones_like(ids)
    seen = _seen(ids, mask, model, sampling)
    draw = _generator(int(torch.randint(2**31, (1,))), model.device)
    cache = DynamicCache(config=model.config)
    position = mask.cumsum(-1) - 1
    with torch.inference_mode():
        for _ in range(room):
            chosen = _draw(_forward(model, ids, mask, position, cache), sampling, [draw], seen)
            token = int(chosen)
            if token in stops:
                return
            yield token
            if seen is not None:
                seen.scatter_(1, chosen[:, None], True)
            ids, position = chosen[:, None], position[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)


def _generator(seed: int, device: Any) -> Any:
    import torch

    return torch.Generator(device=device).manual_seed(seed)


def _forward(model: Any, ids: Any, mask: Any, position: Any, cache: Any) -> Any:
    """Logits of the next token, (rows, vocabulary) in float32."""
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1].float()


def _seen(ids: Any, mask: Any, model: Any, sampling: Sampling) -> Any:
    """(rows, vocabulary) of tokens that the repetition penalty counts; None without a penalty."""
    if sampling.repetition_penalty == 1:
        return None
    vocabulary = model.config.get_text_config().vocab_size
    seen = ids.new_zeros(ids.shape[0], vocabulary, dtype=bool)
    for row in range(ids.shape[0]):
        seen[row, ids[row][mask[row].bool()]] = True
    return seen


def _draw(logits: Any, sampling: Sampling, draws: list[Any], seen: Any) -> Any:
    """The next token of each row; the order of the steps is vLLM's: penalty, temperature, top-k, top-p."""
    import torch

    if seen is not None:
        penalty = sampling.repetition_penalty
        scaled = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(seen, scaled, logits)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1)
        low = ordered.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        low[:, -1] = False
        logits = logits.masked_fill(low.scatter(1, order, low), float("-inf"))
    shares = logits.softmax(-1)
    return torch.cat(
        [torch.multinomial(row, 1, generator=draw) for row, draw in zip(shares, draws, strict=True)]
    )
