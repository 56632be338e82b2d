"""The self-play advantage: how often an answer beats its opponents, minus one half.

SPPO (arXiv 2405.00675) moves a policy by its answers' win rate minus 1/2 against samples of the policy it
plays, estimated from several answers to one prompt. Here the judge is the reward: the higher score wins, scores
within ``margin`` tie and count half. Opponents are the other answers of the group, the answer that the policy of
the previous round gave to the prompt, or both.

verl calls ``preference_advantage`` in the process of its trainer; ``gspo/plugin.py`` registers it there.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

NAME = "preference"
# Scores are sums in float32: 1.0 - 0.9 must not exceed a margin of 0.1.
_ROUNDING = 1e-6


def wins(differences: Tensor, margin: float) -> Tensor:
    """1 where *differences* (any shape, own score minus the opponent's) exceed the margin, 1/2 within it, else 0."""
    bound = margin + _ROUNDING
    return (differences > bound).float() + 0.5 * (differences.abs() <= bound).float()


def win_rates(
    scores: Tensor, groups: Any, margin: float = 0.0, opponent: str = "group", previous: Tensor | None = None
) -> Tensor:
    """Share of its opponents that each answer beats, a tie counting half.

    Args:
        scores: (answers,) the reward of each answer.
        groups: (answers,) what is equal for answers of one prompt, e.g. verl's uid.
        margin: a difference up to this is a tie.
        opponent: ``group`` (the other answers of the group), ``previous`` or ``both``.
        previous: (answers,) score of the previous policy's answer to the same prompt; needed unless ``group``.

    Returns:
        (answers,) between 0 and 1; 1/2 where there is no opponent.
    """
    won, played = torch.zeros_like(scores), torch.zeros_like(scores)
    if opponent != "group":
        if previous is None:
            raise ValueError(f"opponent '{opponent}' needs the scores of the previous policy's answers")
        won += wins(scores - previous, margin)
        played += 1
    if opponent != "previous":
        keys = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
        for key in range(keys.max(initial=-1) + 1):
            rows = torch.from_numpy(np.flatnonzero(keys == key))
            own = scores[rows]
            # The tie of each answer with itself is taken out again.
            won[rows] += wins(own[:, None] - own[None, :], margin).sum(dim=1) - 0.5
            played[rows] += len(rows) - 1
    return torch.where(played > 0, won / played.clamp(min=1), torch.full_like(scores, 0.5))


def normalised(values: Tensor, groups: Any) -> Tensor:
    """*values* (answers,) divided by their standard deviation within each group, as verl's GRPO does it."""
    keys = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    result = values.clone()
    for key in range(keys.max(initial=-1) + 1):
        rows = torch.from_numpy(np.flatnonzero(keys == key))
        if len(rows) > 1:
            result[rows] = values[rows] / (values[rows].std() + 1e-6)
    return result


def preference_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, index: Any, config: Any = None, **_unused: Any
) -> tuple[Tensor, Tensor]:
    """verl's advantage estimator ``preference`` (``verl.trainer.ppo.core_algos.register_adv_est``).

    Args:
        token_level_rewards: (answers, tokens) rewards; an answer's score is their sum.
        response_mask: (answers, tokens) 1 on the tokens to train.
        index: (answers,) verl's uid of the prompt.
        config: verl's ``algorithm`` section; ``preference.margin``, ``preference.opponent``,
            ``preference.previous_scores`` (a file) and ``norm_adv_by_std_in_grpo`` are read.

    Returns:
        Advantages and returns, the same (answers, tokens): win rate minus 1/2 on every token of the answer.

    Raises:
        ValueError: a prompt has no answer of the previous policy.
    """
    chosen = (config.get("preference") if config is not None else None) or {}
    opponent = chosen.get("opponent", "group")
    with torch.no_grad():
        scores = token_level_rewards.sum(dim=-1).float()
        previous = None
        if opponent != "group":
            previous = previous_scores(index, str(chosen.get("previous_scores") or "")).to(scores)
        rates = win_rates(scores, index, float(chosen.get("margin", 0.0)), opponent, previous)
        values = rates - 0.5
        if config is not None and config.get("norm_adv_by_std_in_grpo", False):
            values = normalised(values, index)
        advantages = values.unsqueeze(-1) * response_mask
    return advantages, advantages


@lru_cache(maxsize=1)
def _score_file(path: str) -> dict[str, float]:
    return {
        str(row): float(score) for row, score in json.loads(Path(path).read_text(encoding="utf-8")).items()
    }


def previous_scores(uids: Any, path: str) -> Tensor:
    """The score of the previous policy's answer to each answer's prompt, (answers,).

    verl gives an estimator the uid of a prompt only; the data row that it stands for is read from verl's own
    transfer queue, which the trainer's process has open.

    Args:
        uids: (answers,) verl's uid of the prompt.
        path: JSON object, ``extra_info.index`` of a row -> score (``common/launcher/opponents.py`` writes it).

    Raises:
        ValueError: naming the row that *path* does not hold.
    """
    known = _score_file(path)
    rows = _rows_of(set(map(str, uids)))
    result = []
    for uid in map(str, uids):
        if uid.startswith("pad"):  # verl's filler that makes a batch divisible; it carries no token to train
            result.append(0.0)
            continue
        row = rows.get(uid, "")
        if row not in known:
            raise ValueError(
                f"row {row or '?'} (extra_info.index) has no answer of the previous policy in {path}"
            )
        result.append(known[row])
    return torch.tensor(result)


def _rows_of(uids: set[str]) -> dict[str, str]:
    """``extra_info.index`` of the prompts of verl's current batch, by uid."""
    import transfer_queue as tq

    # A trajectory's key is <uid>_<session>_<output>; one of each prompt is enough.
    keys = {key.rsplit("_", 2)[0]: key for key in tq.kv_list("train").get("train", {}) if key.count("_") >= 2}
    wanted = [key for uid, key in keys.items() if uid in uids]
    data = tq.kv_batch_get(keys=wanted, partition_id="train", select_fields=["uid", "index"])
    return dict(zip(_texts(data["uid"]), _texts(data["index"]), strict=True))


def _texts(column: Any) -> list[str]:
    """A column as the queue returns it: a tensor, a stack of objects, or a plain list of them."""
    return [str(value) for value in (column.tolist() if hasattr(column, "tolist") else column)]
