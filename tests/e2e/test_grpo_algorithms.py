"""Every ALGORITHM trains two steps end to end, and verl runs it with the estimator and loss that it names."""

from __future__ import annotations

import pytest

from .conftest import Trainer

pytestmark = [pytest.mark.e2e, pytest.mark.matrix]

EXPECTED = {
    "grpo": ("grpo", "vanilla"),
    "dr_grpo": ("grpo", "vanilla"),
    "dapo": ("grpo", "vanilla"),
    "rloo": ("rloo", "vanilla"),
    "reinforce_plus_plus": ("reinforce_plus_plus", "vanilla"),
    "reinforce_plus_plus_baseline": ("reinforce_plus_plus_baseline", "vanilla"),
    "opo": ("opo", "vanilla"),
    "gpg": ("gpg", "gpg"),
    "cispo": ("grpo", "cispo"),
    "sapo": ("grpo", "sapo"),
    "gmpo": ("grpo", "geo_mean"),
    "remax": ("remax", "vanilla"),
}


@pytest.mark.parametrize("algorithm", EXPECTED)
def test_algorithm_trains_two_steps(train: Trainer, algorithm: str) -> None:
    run = train("grpo", algorithm, "--smoke", "--algorithm", algorithm, "--save_freq", "0").check()
    steps = [step for step in run.metrics if step]
    assert steps == [1, 2]
    for step in steps:
        assert abs(run.metrics[step]["actor/pg_loss"]) < 100
        assert run.metrics[step]["actor/grad_norm"] >= 0
    estimator, loss = EXPECTED[algorithm]
    console = (run.folder / "console-1.log").read_text(errors="replace")
    assert f"'adv_estimator': '{estimator}'" in console
    assert f"'loss_mode': '{loss}'" in console
