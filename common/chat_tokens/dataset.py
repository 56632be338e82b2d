"""verl's SFT dataset over token files: data.custom_cls.path=<this file>, .name=TokenDataset."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset


class TokenDataset(Dataset):  # type: ignore[misc]
    """Rows of (input_ids, loss_mask), tokenized before launch (common/chat_tokens/store.py).

    Two things that upstream's dataset and trainer leave out:

    - ``data.seed`` decides the order (``verl.trainer.sft_trainer`` shuffles with a sampler whose seed is always 0).
    - Validation counts every row. The trainer drops the last rows that do not fill ``data.train_batch_size`` (all
      of a smaller set, whose loss is then nan); here rows are dealt evenly to whole batches, filled up with rows of
      one token that have no loss.
    """

    def __init__(
        self, parquet_files: Any, tokenizer: Any, config: Any, processor: Any = None, max_samples: int = -1
    ) -> None:
        """verl's constructor for ``data.custom_cls``; *config* is its ``data`` section."""
        files = [parquet_files] if isinstance(parquet_files, str) else list(parquet_files)
        table = pa.concat_tables([pq.read_table(str(name), memory_map=True) for name in files])
        if 0 < max_samples < len(table):
            table = table.slice(0, max_samples)
        self._ids, self._mask = (table.column(name).combine_chunks() for name in ("input_ids", "loss_mask"))
        self._filler = int(getattr(tokenizer, "pad_token_id", None) or 0)
        if parquet_files == config.train_files:
            self._order = np.random.default_rng(int(config.get("seed", 0))).permutation(len(table))
        else:
            self._order = deal(len(table), int(config.train_batch_size))

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        """``input_ids``, ``loss_mask`` and ``position_ids`` of one row, each (length,) int64."""
        row = int(self._order[item])
        if row < 0:
            ids, mask = torch.tensor([self._filler]), torch.tensor([0])
        else:
            ids, mask = (
                torch.from_numpy(column[row].values.to_numpy().astype(np.int64))
                for column in (self._ids, self._mask)
            )
        return {"input_ids": ids, "loss_mask": mask, "position_ids": torch.arange(len(ids))}


def deal(rows: int, batch: int) -> np.ndarray:
    """Row numbers in whole batches of nearly equal real rows, -1 for filler.

    The trainer takes the mean of the batches' losses, so batches must hold the same number of rows.
    """
    batches = max(1, -(-rows // batch))
    order = np.full((batches, batch), -1)
    for number in range(batches):
        part = np.arange(number, rows, batches)
        order[number, : len(part)] = part
    return order.ravel()
