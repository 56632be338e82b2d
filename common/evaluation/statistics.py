"""avg@k, pass@k, maj@k, intervals and the paired test, each as its paper defines it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased chance that one of k samples is right: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, Codex).

    Raises:
        ValueError: fewer samples than k.
    """
    if k > samples:
        raise ValueError(f"pass@{k} needs {k} samples, there are {samples}")
    if samples - right < k:
        return 1.0
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority(answers: Sequence[str | None]) -> str | None:
    """The answer with more votes than any other; None for a tie. An answer that was not found has no vote."""
    votes = Counter(answer for answer in answers if answer is not None).most_common(2)
    if not votes or (len(votes) == 2 and votes[0][1] == votes[1][1]):
        return None
    return votes[0][0]


def maj_at_k(answers: Sequence[str | None], right: Sequence[bool]) -> float:
    """1.0 when the majority's answer is right (Wang et al. 2023, self-consistency), else 0.0.

    Args:
        answers: the extracted answer of each sample, None where none was found.
        right: the verdict of each sample; the first sample with the majority's answer decides.
    """
    chosen = majority(answers)
    return float(chosen is not None and right[list(answers).index(chosen)])


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    if total == 0:
        return 0.0, 0.0
    share, z2 = right / total, Z * Z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of one value per item: mean -/+ 1.96 standard errors (Miller 2024, arXiv 2411.00640).

    With several samples per item the items are the independent draws, so *values* are the items' means.
    """
    count = len(values)
    if count == 0:
        return 0.0, 0.0
    mean = math.fsum(values) / count
    if count == 1:
        return mean, mean
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = Z * spread / math.sqrt(count)
    return mean - half, mean + half


def share_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean of values in [0, 1]: Wilson's where all are 0 or 1, else `mean_interval`, clipped."""
    if all(value in (0.0, 1.0) for value in values):
        return wilson(round(math.fsum(values)), len(values))
    low, high = mean_interval(values)
    return max(0.0, low), min(1.0, high)


def mcnemar(fixed: int, broken: int) -> float:
    """Exact two-sided p of McNemar's paired test: could this many changes be chance?

    Args:
        fixed: items wrong before and right after.
        broken: items right before and wrong after.
    """
    changed = fixed + broken
    tail = sum(math.comb(changed, i) for i in range(min(fixed, broken) + 1))
    return min(1.0, 2 * tail / 2**changed)


def powers(n: int) -> list[int]:
    """1, 2, 4, ... and n itself."""
    return sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})
