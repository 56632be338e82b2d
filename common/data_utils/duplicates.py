"""Near duplicates by MinHash and locality-sensitive hashing (the `rensa` library), exact ones by hash."""

from __future__ import annotations

import re
from collections.abc import Sequence

from common.data_utils.errors import DataError

PERMUTATIONS = 128
# 32 bands of 4 rows: pairs of Jaccard similarity 0.8 become candidates with probability 1 - (1 - 0.8**4)**32,
# which misses less than one pair in ten million; the similarity is then estimated from all 128 values.
BANDS = 32
THRESHOLD = 0.8
_TOKEN = re.compile(r"\w+|[^\w\s]")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def shingles(text: str) -> list[str]:
    """Overlapping word triples, or character quadruples for scripts that do not space their words."""
    text = text.lower()
    if len(_CJK.findall(text)) * 5 > len(text):
        dense = "".join(text.split())
        return [dense[start : start + 4] for start in range(max(1, len(dense) - 3))]
    words = _TOKEN.findall(text)
    if len(words) < 3:
        return [" ".join(words)]
    return [" ".join(words[start : start + 3]) for start in range(len(words) - 2)]


class NearDuplicates:
    """Finds, for each text, earlier texts that nearly equal it."""

    def __init__(self, threshold: float = THRESHOLD, seed: int = 42) -> None:
        try:
            from rensa import RMinHash, RMinHashLSH
        except ImportError:
            raise DataError(
                "near-duplicate search needs the package rensa (pip install rensa), or --no-near"
            ) from None
        self._new = RMinHash
        self._index = RMinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, num_bands=BANDS)
        self._hashes: list[object] = []
        self._threshold, self._seed = threshold, seed

    def _sketch(self, text: str) -> object:
        sketch = self._new(num_perm=PERMUTATIONS, seed=self._seed)
        sketch.update(shingles(text))
        return sketch

    def nearest(self, text: str) -> int | None:
        """Position of the first added text at least as similar as the threshold, else None."""
        sketch = self._sketch(text)
        return self._match(sketch)

    def add(self, text: str) -> int | None:
        """Add a text; returns the position of an earlier near duplicate, if any."""
        sketch = self._sketch(text)
        match = self._match(sketch)
        self._index.insert(len(self._hashes), sketch)
        self._hashes.append(sketch)
        return match

    def _match(self, sketch: object) -> int | None:
        candidates: Sequence[int] = self._index.query(sketch)
        for position in sorted(candidates):
            if sketch.jaccard(self._hashes[position]) >= self._threshold:  # type: ignore[attr-defined]
                return position
        return None
