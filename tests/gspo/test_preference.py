"""The preference advantage against a brute-force count of games, and its way into verl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gspo.preference import preference_advantage, previous_scores, win_rates

ROOT = Path(__file__).resolve().parents[2]
# Sixteenths are exact in float32, so that margins meet differences exactly.
SCORES = st.integers(-32, 32).map(lambda n: n / 16)
ANSWERS = st.lists(st.tuples(SCORES, st.sampled_from("abc")), min_size=1, max_size=24)


def brute_force(
    scores: list[float], groups: list[str], margin: float, opponent: str, previous: list[float]
) -> list[float]:
    """Win rate of each answer: one game per opponent, a tie half."""
    rates = []
    for i, own in enumerate(scores):
        opponents = [] if opponent == "group" else [previous[i]]
        if opponent != "previous":
            opponents += [s for j, s in enumerate(scores) if groups[j] == groups[i] and j != i]
        games = [1.0 if own - s > margin else 0.0 if s - own > margin else 0.5 for s in opponents]
        rates.append(sum(games) / len(games) if games else 0.5)
    return rates


@settings(max_examples=150, deadline=None)
@given(ANSWERS, st.integers(0, 16), st.sampled_from(["group", "previous", "both"]), st.randoms())
def test_win_rates_equal_brute_force(answers: list, margin: int, opponent: str, random: object) -> None:
    scores, groups = [a[0] for a in answers], [a[1] for a in answers]
    played = {group: random.randint(-32, 32) / 16 for group in "abc"}
    previous = [played[group] for group in groups]
    ours = win_rates(torch.tensor(scores), np.array(groups), margin / 16, opponent, torch.tensor(previous))
    assert np.allclose(
        ours.numpy(), brute_force(scores, groups, margin / 16, opponent, previous), atol=1e-6, rtol=0
    )


@settings(max_examples=50, deadline=None)
@given(ANSWERS)
def test_games_within_a_group_sum_to_zero(answers: list) -> None:
    groups = np.array([a[1] for a in answers])
    values = win_rates(torch.tensor([a[0] for a in answers]), groups) - 0.5
    for group in set(groups):
        assert abs(values[torch.from_numpy(groups == group)].sum().item()) < 1e-5


def test_a_margin_that_float32_cannot_hold_is_still_a_tie() -> None:
    scores, groups = torch.tensor([1.0, 0.9]), np.array(["a", "a"])
    assert win_rates(scores, groups, margin=0.1).tolist() == [0.5, 0.5]
    assert win_rates(scores, groups, margin=0.09).tolist() == [1.0, 0.0]


def estimate(config: dict, rewards: list[list[float]], uids: list[str]) -> torch.Tensor:
    """Advantages through verl's own dispatch, in a process where only the plugin was loaded."""
    from verl.protocol import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    import gspo.plugin  # noqa: F401  (registers)

    tensors = {"token_level_rewards": torch.tensor(rewards)}
    tensors["response_mask"] = torch.tensor([[1, 1, 0]] * len(rewards))
    data = DataProto.from_dict(tensors, {"uid": np.array(uids, dtype=object)})
    done = compute_advantage_for_multi_trajectories(
        data,
        batch_keys=[f"{uid}_{n}_0" for n, uid in enumerate(uids)],
        adv_estimator="preference",
        config=OmegaConf.create(config),
    )
    assert torch.equal(done.batch["advantages"], done.batch["returns"])
    return done.batch["advantages"]


def test_verl_calls_the_estimator_with_the_runs_margin() -> None:
    rewards = [[0.0, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 3.0, 0.0]]
    uids = ["p", "p", "p", "q"]
    plain = estimate({"preference": {"opponent": "group", "margin": 0.0}}, rewards, uids)
    assert plain.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [-0.5, -0.5, 0.0], [0.0, 0.0, 0.0]]
    wide = estimate({"preference": {"opponent": "group", "margin": 0.5}}, rewards, uids)
    assert wide[:, 0].tolist() == [0.25, 0.0, -0.25, 0.0]


def test_dividing_by_the_groups_std_is_verls_own_rule() -> None:
    config = {"preference": {"opponent": "group", "margin": 0.0}, "norm_adv_by_std_in_grpo": True}
    values = estimate(config, [[0.0, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]], ["p"] * 3)[:, 0]
    expected = torch.tensor([0.5, 0.0, -0.5]) / (torch.tensor([0.5, 0.0, -0.5]).std() + 1e-6)
    torch.testing.assert_close(values, expected)


class Queue:
    """Stands for verl's transfer queue, which exists only inside of a Ray cluster (tests/e2e has the real one)."""

    def __init__(self, rows: dict[str, int]) -> None:
        self.rows = rows

    def kv_list(self, partition_id: str) -> dict:
        return {partition_id: {key: {} for key in [*self.rows, "another-uid_0_0"]}}

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> dict:
        uids = [key.rsplit("_", 2)[0] for key in keys]
        # verl 0.9.1 hands numbers of a data row out as a list, not as a tensor.
        return {"uid": np.array(uids), "index": [self.rows[key] for key in keys]}


def test_previous_scores_follow_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transfer_queue", Queue({"u-1_0_0": 7, "u-1_1_0": 7, "u-2_0_0": 9}))
    path = tmp_path / "round-2.json"
    path.write_text(json.dumps({"7": 0.25, "9": 1.0}))
    assert previous_scores(["u-1", "u-2", "u-1", "pad17"], str(path)).tolist() == [0.25, 1.0, 0.25, 0.0]
    config = {"preference": {"opponent": "previous", "margin": 0.0, "previous_scores": str(path)}}
    rewards, mask = torch.tensor([[0.5], [1.0]]), torch.ones(2, 1)
    values, _ = preference_advantage(rewards, mask, np.array(["u-1", "u-2"]), OmegaConf.create(config))
    assert values.tolist() == [[0.5], [0.0]]
    other = tmp_path / "round-3.json"
    other.write_text(json.dumps({"7": 0.25}))
    with pytest.raises(ValueError, match=r"row 9 .* has no answer of the previous policy in .*round-3\.json"):
        previous_scores(["u-2"], str(other))


@pytest.mark.slow
def test_verl_loads_both_plugins_and_knows_the_estimator() -> None:
    script = (
        "import verl; from verl.trainer.ppo import core_algos; from verl.plugin.platform import get_platform; "
        "print(core_algos.get_adv_estimator_fn('preference').__module__, get_platform().device_name)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'common/cpu/site'}:{ROOT}",
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "common.cpu.plugin,gspo.plugin",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-2:] == ["gspo.preference", "cpu"]
