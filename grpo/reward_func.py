"""The sample task's reward: most of it for the right number, a little for saying nothing else.

Copy this file, change `compute_score`, and name it in REWARD_FUNC_PATH. Look at its scores before the run:

    python -m common.reward_functions dry-run --reward grpo/reward_func.py --data DATA.parquet

More building blocks: `python -m common.reward_functions list`, explained in docs/rewards.md.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from common.reward_functions.answers import last_number
from common.reward_functions.numbers import parse_number


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None
) -> dict[str, float]:
    """Score one answer to an arithmetic question.

    Args:
        data_source: name of the data set; one task here, so unused.
        solution_str: the model's answer, special tokens removed.
        ground_truth: the right number, e.g. ``"62"``.
        extra_info: the row's other columns; unused.

    Returns:
        ``score`` = 0.8 ``acc`` + 0.2 ``bare``, in [0, 1]: ``acc`` is 1 when the last number is right,
        ``bare`` is 1 when the answer is one number and nothing else.

    >>> compute_score("addition", "62", "62")
    {'score': 1.0, 'acc': 1.0, 'bare': 1.0}
    >>> compute_score("addition", "27 + 35 = 62.", "62")
    {'score': 0.8, 'acc': 1.0, 'bare': 0.0}
    >>> compute_score("addition", "", "62")
    {'score': 0.0, 'acc': 0.0, 'bare': 0.0}
    """
    said = last_number(solution_str)  # "62", "-1,000.5", "1/2" or None
    acc = float(said is not None and parse_number(said) == Fraction(ground_truth))
    bare = float(said is not None and solution_str.strip() == said)
    return {"score": 0.8 * acc + 0.2 * bare, "acc": acc, "bare": bare}
