"""The losses against formulas written another way (numpy, one pair at a time), and against TRL's own code."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch

from dpo import losses
from dpo.losses import LOSSES, Logps, Settings

PAIRS, TOKENS = 6, 9
CASES = [
    Settings("sigmoid"),
    Settings("sigmoid", beta=0.5),
    Settings("sigmoid", label_smoothing=0.2),
    Settings("hinge", beta=0.3),
    Settings("ipo", beta=0.2),
    Settings("robust", beta=0.2, label_smoothing=0.1),
    Settings("exo_pair", beta=0.3, label_smoothing=0.001),
    Settings("apo_zero", beta=0.2),
    Settings("apo_down", beta=0.2),
    Settings("sppo_hard", beta=0.4),
    Settings("nca_pair", beta=0.2),
    Settings("simpo", beta=2.0, gamma=1.0),
    Settings("simpo", beta=2.0, gamma=0.3, label_smoothing=0.1),
    Settings("orpo", beta=0.1),
]
NAMES = [f"{case.loss_type}-{case.beta}-{case.label_smoothing}" for case in CASES]


def token_logps() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Policy, reference and mask, (2n, tokens): chosen rows, then rejected rows, of different lengths."""
    generator = torch.Generator().manual_seed(3)
    policy, ref = (-3 * torch.rand(2 * PAIRS, TOKENS, generator=generator) for _ in range(2))
    lengths = torch.randint(2, TOKENS + 1, (2 * PAIRS,), generator=generator)
    return policy, ref, (torch.arange(TOKENS) < lengths[:, None]).float()


def summed(policy: torch.Tensor, ref: torch.Tensor, mask: torch.Tensor) -> Logps:
    sums = [*(policy * mask).sum(1).chunk(2), *(ref * mask).sum(1).chunk(2), *mask.sum(1).chunk(2)]
    return Logps(*sums)


def by_hand(case: Settings, c: float, r: float, rc: float, rr: float, nc: float, nr: float) -> float:
    """One pair, from the papers, with plain probabilities instead of log-sigmoids."""
    beta, flip = case.beta, case.label_smoothing

    def s(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    prefer = s(beta * ((c - rc) - (r - rr)))  # the probability that chosen beats rejected under the policy
    up, down = s(beta * (c - rc)), s(beta * (r - rr))
    if case.loss_type == "sigmoid":
        return -((1 - flip) * math.log(prefer) + flip * math.log(1 - prefer))
    if case.loss_type == "hinge":
        return max(0.0, 1 - math.log(prefer / (1 - prefer)))
    if case.loss_type == "ipo":
        return ((c - rc) / nc - (r - rr) / nr - 1 / beta / 2) ** 2
    if case.loss_type == "robust":
        return (-(1 - flip) * math.log(prefer) + flip * math.log(1 - prefer)) / (1 - 2 * flip)
    if case.loss_type == "exo_pair":  # KL(policy's preference || smoothed label)
        return prefer * math.log(prefer / (1 - flip)) + (1 - prefer) * math.log((1 - prefer) / flip)
    if case.loss_type == "apo_zero":
        return (1 - up) + down
    if case.loss_type == "apo_down":
        return up + (1 - prefer)
    if case.loss_type == "sppo_hard":
        return ((c - rc) - 1 / (2 * beta)) ** 2 + ((r - rr) + 1 / (2 * beta)) ** 2
    if case.loss_type == "nca_pair":
        return -math.log(up) - (math.log(1 - up) + math.log(1 - down)) / 2
    if case.loss_type == "simpo":
        wins = s(beta * (c / nc - r / nr) - case.gamma)
        return -((1 - flip) * math.log(wins) + flip * math.log(1 - wins))
    p, q = math.exp(c / nc), math.exp(r / nr)
    odds = (p / (1 - p)) / (q / (1 - q))
    return -math.log(p) - beta * math.log(odds / (1 + odds))


@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_loss_equals_the_papers_formula(case: Settings, alpha: float) -> None:
    logps = summed(*token_logps())
    got = losses.pair_losses(logps, Settings(**{**vars(case), "rpo_alpha": alpha}))
    columns = (
        logps.chosen, logps.rejected, logps.ref_chosen, logps.ref_rejected, logps.chosen_tokens, logps.rejected_tokens
    )  # fmt: skip
    rows = zip(*(column.double().tolist() for column in columns), strict=True)
    expected = [by_hand(case, *row) - alpha * row[0] / row[4] for row in rows]
    torch.testing.assert_close(got.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)


def test_every_loss_is_covered() -> None:
    assert {case.loss_type for case in CASES} == set(LOSSES)


@pytest.mark.slow
def test_loss_and_gradient_equal_trl() -> None:
    from benchmarks.peers import trl_python

    # TRL's sigmoid knows no label smoothing.
    cases = [case for case in CASES if not (case.loss_type == "sigmoid" and case.label_smoothing)]
    policy, ref, mask = token_logps()
    given = {
        "cases": [vars(case) for case in cases],
        "policy": policy.tolist(),
        "ref": ref.tolist(),
        "mask": mask.tolist(),
    }
    done = subprocess.run(
        [str(trl_python()), str(Path(__file__).with_name("trl_losses.py"))],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    for case, their in zip(cases, theirs, strict=True):
        mine = policy.clone().requires_grad_()
        loss = losses.pair_losses(summed(mine, ref, mask), case).mean()
        loss.backward()
        assert loss.item() == pytest.approx(their["loss"], rel=1e-5, abs=1e-5), case
        torch.testing.assert_close(
            mine.grad, torch.tensor(their["grad"]), rtol=1e-5, atol=1e-5, msg=str(case)
        )


def test_extreme_log_ratios_stay_finite() -> None:
    far = torch.tensor([-4000.0, 0.0, -1e-3])
    for case in CASES:
        leaf = far.clone().requires_grad_()
        count = torch.tensor([100.0, 1.0, 1.0])
        logps = Logps(leaf - 1e-6, far.flip(0) - 1e-6, far * 0, far * 0, count, count)
        value = losses.pair_losses(logps, case)
        value.sum().backward()
        assert torch.isfinite(value).all(), case
        assert torch.isfinite(leaf.grad).all(), case


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Settings("dpo"), "LOSS_TYPE=dpo is unknown; known: sigmoid, hinge, ipo"),
        (Settings(beta=0.0), "BETA=0.0 must be above 0"),
        (Settings(beta=-1.0), "BETA=-1.0 must be above 0"),
        (Settings(beta=float("nan")), "BETA=nan must be above 0"),
        (Settings(label_smoothing=0.5), "LABEL_SMOOTHING=0.5 must be at least 0 and below 0.5"),
        (Settings("hinge", label_smoothing=0.1), "LOSS_TYPE=hinge has no label smoothing"),
        (Settings("ipo", label_smoothing=0.1), "LOSS_TYPE=ipo has no label smoothing"),
        (Settings("exo_pair"), "LOSS_TYPE=exo_pair needs LABEL_SMOOTHING above 0"),
        (Settings(rpo_alpha=-1.0), "RPO_ALPHA=-1.0 must be 0"),
    ],
)
def test_bad_settings_are_one_line_each(case: Settings, words: str) -> None:
    assert [line for line in losses.problems(case) if words in line]
    assert len(losses.problems(case)) == 1
    with pytest.raises(ValueError, match=words.split()[0]):
        losses.pair_losses(summed(*token_logps()), case)


def test_rewards_are_those_of_the_field() -> None:
    logps = summed(*token_logps())
    chosen, rejected = losses.rewards(logps, Settings(beta=0.3))
    torch.testing.assert_close(chosen, 0.3 * (logps.chosen - logps.ref_chosen))
    torch.testing.assert_close(rejected, 0.3 * (logps.rejected - logps.ref_rejected))
    chosen, _ = losses.rewards(logps, Settings("simpo", beta=2.0))
    torch.testing.assert_close(chosen, 2.0 * logps.chosen / logps.chosen_tokens)
