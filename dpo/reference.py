"""Reference log-probs on disk: computed once per (model, pairs, precision), found again by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.cpu.model import cache_root
from common.data_utils.atomic import clear_stale, replacing
from common.data_utils.cache import Digests
from dpo.preference_data import Pair

VERSION = 1
_WEIGHTS = ("*.safetensors", "*.bin", "config.json")


def model_digest(model: str | Path) -> str:
    """Content hash of a model or adapter: its weights and configs; big files are read once.

    Args:
        model: a folder or a hub id, which is fetched as the engine would fetch it.
    """
    root = Path(model)
    if not root.is_dir():
        from huggingface_hub import snapshot_download

        root = Path(snapshot_download(str(model), allow_patterns=[*_WEIGHTS, "adapter_config.json"]))
    digests = Digests(cache_root() / "dpo")
    files = sorted({path for pattern in (*_WEIGHTS, "adapter_config.json") for path in root.glob(pattern)})
    found = [[path.name, digests.of(path)] for path in files]
    digests.save()
    if not found:
        raise FileNotFoundError(f"{model} holds no weights")
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def pairs_digest(pairs: Sequence[Pair]) -> str:
    """Content hash of tokenized pairs: it changes with the data, the tokenizer, the template and the limits."""
    digest = hashlib.sha256()
    for pair in pairs:
        for ids in (pair.prompt, pair.chosen.ids, pair.rejected.ids):
            digest.update(
                len(ids).to_bytes(8, "little") + torch.tensor(ids, dtype=torch.int32).numpy().tobytes()
            )
        digest.update(bytes(pair.chosen.learned) + bytes(pair.rejected.learned))
    return digest.hexdigest()


def cache_file(pairs: Sequence[Pair], model: str | Path, adapter: str | Path | None, dtype: str) -> Path:
    """Where the log-probs of these pairs under this reference lie.

    Args:
        adapter: folder of the adapter that belongs to the reference, or None.
        dtype: the precision that the engine computes in.
    """
    parts = [
        VERSION,
        pairs_digest(pairs),
        model_digest(model),
        model_digest(adapter) if adapter else "",
        dtype,
    ]
    name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    return cache_root() / "dpo" / f"{name}.pt"


def load(path: Path, pairs: int) -> Tensor | None:
    """The log-probs (pairs, 2) of an earlier run; None where there are none, or the file is not whole."""
    try:
        found = torch.load(path, weights_only=True)
    except Exception:  # absent, cut short or foreign: it is computed again
        return None
    return found if isinstance(found, Tensor) and found.shape == (pairs, 2) else None


def save(path: Path, values: Tensor) -> None:
    """Keep the log-probs for later runs; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_stale(path.parent)
    with replacing(path) as temporary:
        torch.save(values, temporary)
