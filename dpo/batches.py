"""Pairs -> verl's batches, in one of two layouts.

`shared`: a pair is one row, `prompt chosen prompt[-1] rejected`, whose two answers attend to one copy of the prompt
(dpo/shared_prompt.py); the repeated token predicts the first token of the rejected answer. `separate`: a pair is two
rows, prompt + chosen and prompt + rejected, kept together by verl's `force_group_size`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpo.preference_data import Pair

CHOSEN, REJECTED = 1, 2


@dataclass(frozen=True)
class Row:
    """One packed row: tokens, positions, and for each token the answer it belongs to (0: none, or not learned)."""

    ids: list[int]
    positions: list[int]
    side: list[int]
    segments: tuple[int, int, int]


def shared_row(pair: Pair) -> Row:
    """The pair as one row; segments = tokens of (what both sides read, chosen, rejected)."""
    prompt, last = pair.prompt, pair.prompt[-1:]
    shared = len(prompt) - 1
    left, right = 1 + len(pair.chosen.ids), 1 + len(pair.rejected.ids)
    return Row(
        [*prompt, *pair.chosen.ids, *last, *pair.rejected.ids],
        [*range(shared + left), *range(shared, shared + right)],
        [0] * len(prompt)
        + [CHOSEN * own for own in pair.chosen.learned]
        + [0]
        + [REJECTED * own for own in pair.rejected.learned],
        (shared, left, right),
    )


def separate_rows(pair: Pair) -> list[Row]:
    """The pair as two rows: chosen, rejected."""
    rows = []
    for code, answer in ((CHOSEN, pair.chosen), (REJECTED, pair.rejected)):
        ids = [*pair.prompt, *answer.ids]
        side = [0] * len(pair.prompt) + [code * own for own in answer.learned]
        rows.append(Row(ids, list(range(len(ids))), side, (0, len(ids), 0)))
    return rows


def rows_of(pair: Pair, shared: bool) -> list[Row]:
    """The rows of a pair in the layout."""
    return [shared_row(pair)] if shared else separate_rows(pair)


def computed_tokens(pair: Pair, shared: bool) -> int:
    """Tokens that the model computes for a pair, which must fit into the token budget of a micro-batch."""
    return sum(len(row.ids) for row in rows_of(pair, shared))


def _nested(columns: Sequence[Sequence[int]]) -> Any:
    return torch.nested.as_nested_tensor(
        [torch.tensor(column, dtype=torch.long) for column in columns], layout=torch.jagged
    )


def collate(items: Sequence[tuple[Pair, Tensor, float]], shared: bool) -> dict[str, Tensor]:
    """One batch.

    Args:
        items: (pair, reference log-probs (2,) of chosen and rejected, weight in the loss: 0 for a filler).

    Returns:
        per row: input_ids, position_ids, loss_mask, side (nested, int64) and segments (3); `reference` (rows, 2 in
        the shared layout, 1 in the other) and `weight` (the same shape), both fp32.
    """
    rows = [row for pair, _, _ in items for row in rows_of(pair, shared)]
    width = 2 if shared else 1
    side = _nested([row.side for row in rows])
    return {
        "input_ids": _nested([row.ids for row in rows]),
        "position_ids": _nested([row.positions for row in rows]),
        "side": side,
        "loss_mask": torch.nested.nested_tensor_from_jagged((side.values() > 0).long(), side.offsets()),
        "segments": torch.tensor([row.segments for row in rows]),
        "reference": torch.stack([reference for _, reference, _ in items]).float().view(-1, width),
        "weight": torch.tensor([[weight] * 2 for _, _, weight in items]).view(-1, width),
    }


class PairBatches:
    """The order of the training pairs: shuffled by seed and epoch, cut into batches, one share per process.

    It has no state: (epoch, step) says which pairs come, so a resumed run meets the pairs of the uninterrupted
    one. The two empty methods are what verl's CheckpointHandler asks of a data loader.
    """

    def __init__(self, pairs: int, batch: int, rank: int, ranks: int, seed: int) -> None:
        self.pairs, self.batch, self.rank, self.ranks, self.seed = pairs, batch, rank, ranks, seed

    def __len__(self) -> int:
        """Steps of an epoch; pairs that do not fill a batch wait for the next epoch's order."""
        return self.pairs // self.batch

    def epoch(self, number: int, first: int = 0) -> Iterator[list[int]]:
        """Indices of this process's pairs, step by step, from step `first` of the epoch on."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order = torch.randperm(self.pairs, generator=generator).tolist()
        for step in range(first, len(self)):
            yield order[step * self.batch : (step + 1) * self.batch][self.rank :: self.ranks]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see the class."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: see the class."""


def shares(
    indices: Sequence[int], batch: int, rank: int, ranks: int, multiple: int = 1
) -> Iterator[tuple[list[int], list[float]]]:
    """Every index once over all processes, in batches of up to `batch`, as many for each process.

    Args:
        multiple: pairs of a static micro-batch, which a process's share must fill.

    Yields:
        (indices, weights) of this process; an index repeated as filler has weight 0.
    """
    for start in range(0, len(indices), batch):
        mine = list(indices[start : start + batch])
        fillers = -len(mine) % (ranks * multiple)
        weights = [1.0] * len(mine) + [0.0] * fillers
        mine += [mine[0]] * fillers
        yield mine[rank::ranks], weights[rank::ranks]
