"""GSPO's loss, by verl's function under our configuration, against the paper's formula."""

from __future__ import annotations

import torch
from launcher.conftest import Launcher, composed
from torch import Tensor

from common.launcher.resolve import mini_batch


def actor_config(launch: Launcher, *flags: str) -> object:
    """verl's own config object of the actor, from gspo/config.yaml and train.sh."""
    from verl.utils.config import omega_conf_to_dataclass

    config = composed(launch.dry_run("--device", "cpu", "--no-preflight", *flags, method="gspo"), "gspo")
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def paper_loss(
    new: Tensor, old: Tensor, advantages: Tensor, lengths: list[int], low: float, high: float
) -> Tensor:
    """Minus equation 5 of arXiv 2507.18071: answers (answers, tokens), one advantage each, first `lengths` tokens."""
    terms = []
    for row, length in enumerate(lengths):
        ratio = torch.exp((new[row, :length] - old[row, :length]).sum() / length)
        clipped = ratio.clamp(1 - low, 1 + high)
        terms.append(torch.minimum(ratio * advantages[row], clipped * advantages[row]))
    return -torch.stack(terms).mean()


def test_loss_and_gradient_equal_the_papers_formula(launch: Launcher) -> None:
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    config = actor_config(launch)
    assert (config.clip_ratio_low, config.clip_ratio_high) == (3e-4, 4e-4)
    for seed in range(20):
        torch.manual_seed(seed)
        rows, tokens = 12, 9
        lengths = torch.randint(1, tokens + 1, (rows,)).tolist()
        mask = torch.arange(tokens)[None, :] < torch.tensor(lengths)[:, None]
        old = -3 * torch.rand(rows, tokens, dtype=torch.float64)
        # Around the clip range: some answers inside it, some beyond on either side.
        new = (old + 1e-3 * torch.randn(rows, tokens, dtype=torch.float64)).requires_grad_()
        advantages = torch.randn(rows, dtype=torch.float64)
        loss, metrics = get_policy_loss_fn(config.policy_loss["loss_mode"])(
            old_log_prob=old,
            log_prob=new,
            advantages=advantages[:, None] * mask,
            response_mask=mask,
            loss_agg_mode=config.loss_agg_mode,
            config=config,
        )
        expected = paper_loss(new, old, advantages, lengths, config.clip_ratio_low, config.clip_ratio_high)
        assert abs(loss.item() - expected.item()) < 1e-6
        assert 0 < metrics["actor/pg_clipfrac"] < 1
        ours, theirs = torch.autograd.grad(loss, new)[0], torch.autograd.grad(expected, new)[0]
        # verl's gradient runs through the token's own probability; within the clip range it is the same number.
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_the_default_makes_several_updates_per_rollout(launch: Launcher) -> None:
    assert actor_config(launch, "--batch_size", "10").ppo_mini_batch_size == 2
    for batch, mini in (("8", "2"), ("64", "16"), ("6", "1"), ("2", "1"), ("1", "1")):
        assert mini_batch(batch, "gspo") == mini
        assert mini_batch(batch, "grpo") == batch
