"""The preference losses: each a pure function of summed log-probs, with its paper.

Every loss takes a `Logps` of n pairs and returns n losses, unreduced. `beta`, `label_smoothing` and `gamma` mean
what the papers mean by them. `h` below is the difference of the two log-ratios to the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Logps:
    """Log-probs in nats of n pairs, each summed over the tokens of its answer; all fields have shape (n,).

    `chosen_tokens` and `rejected_tokens` count those tokens. `ref_*` are the reference's, zeros without one.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def chosen_ratio(self) -> Tensor:
        """log pi/pi_ref of the chosen answers."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """log pi/pi_ref of the rejected answers."""
        return self.rejected - self.ref_rejected

    @property
    def h(self) -> Tensor:
        """chosen_ratio - rejected_ratio."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def chosen_mean(self) -> Tensor:
        """Log-prob per token of the chosen answers."""
        return self.chosen / self.chosen_tokens

    @property
    def rejected_mean(self) -> Tensor:
        """Log-prob per token of the rejected answers."""
        return self.rejected / self.rejected_tokens


@dataclass(frozen=True)
class Settings:
    """beta > 0; 0 <= label_smoothing < 0.5; gamma is SimPO's target margin; rpo_alpha weighs the SFT term."""

    loss_type: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.5
    rpo_alpha: float = 0.0


Loss = Callable[[Logps, Settings], Tensor]


def sigmoid(logps: Logps, to: Settings) -> Tensor:
    """DPO (arXiv 2305.18290, eq. 7); with label_smoothing the conservative form (cDPO, Mitchell 2023)."""
    return _smoothed(to.beta * logps.h, to.label_smoothing)


def hinge(logps: Logps, to: Settings) -> Tensor:
    """SLiC's hinge on DPO's implicit reward (arXiv 2305.10425; as a DPO loss: RSO, arXiv 2309.06657, eq. 11)."""
    return torch.relu(1 - to.beta * logps.h)


def ipo(logps: Logps, to: Settings) -> Tensor:
    """IPO (arXiv 2310.12036, eq. 17), beta its tau; log-ratios per token, as its authors ran it."""
    h = logps.chosen_ratio / logps.chosen_tokens - logps.rejected_ratio / logps.rejected_tokens
    return (h - 1 / (2 * to.beta)) ** 2


def robust(logps: Logps, to: Settings) -> Tensor:
    """Robust DPO (arXiv 2403.00409, eq. 12): unbiased when a share label_smoothing of the labels is flipped."""
    h, flip = to.beta * logps.h, to.label_smoothing
    return (-(1 - flip) * logsigmoid(h) + flip * logsigmoid(-h)) / (1 - 2 * flip)


def exo_pair(logps: Logps, to: Settings) -> Tensor:
    """EXO on pairs (arXiv 2402.00856, eq. 16): reverse KL to the smoothed labels; label_smoothing > 0."""
    h, flip = to.beta * logps.h, torch.tensor(to.label_smoothing, dtype=torch.float64)
    right, wrong = torch.log1p(-flip).item(), torch.log(flip).item()
    return torch.sigmoid(h) * (logsigmoid(h) - right) + torch.sigmoid(-h) * (logsigmoid(-h) - wrong)


def apo_zero(logps: Logps, to: Settings) -> Tensor:
    """APO-zero (arXiv 2408.06266, eq. 7): for chosen answers that are better than the model's own."""
    return 1 - torch.sigmoid(to.beta * logps.chosen_ratio) + torch.sigmoid(to.beta * logps.rejected_ratio)


def apo_down(logps: Logps, to: Settings) -> Tensor:
    """APO-down (arXiv 2408.06266, eq. 8): for chosen answers that are worse than the model's own."""
    return torch.sigmoid(to.beta * logps.chosen_ratio) + 1 - torch.sigmoid(to.beta * logps.h)


def sppo_hard(logps: Logps, to: Settings) -> Tensor:
    """SPPO with hard labels (arXiv 2405.00675, eq. 4.7 with P = 1 and 0)."""
    half = 0.5 / to.beta
    return (logps.chosen_ratio - half) ** 2 + (logps.rejected_ratio + half) ** 2


def nca_pair(logps: Logps, to: Settings) -> Tensor:
    """NCA on pairs (arXiv 2402.05369, eq. 11): keeps the chosen answer's likelihood from falling."""
    chosen, rejected = to.beta * logps.chosen_ratio, to.beta * logps.rejected_ratio
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def simpo(logps: Logps, to: Settings) -> Tensor:
    """SimPO (arXiv 2405.14734, eq. 6): reference-free, log-probs per token, target margin gamma."""
    margin = to.beta * (logps.chosen_mean - logps.rejected_mean) - to.gamma
    return _smoothed(margin, to.label_smoothing)


def orpo(logps: Logps, to: Settings) -> Tensor:
    """ORPO (arXiv 2403.07691, eq. 6 and 7): reference-free, SFT plus beta (its lambda) times the odds ratio."""
    ratio = _log_odds(logps.chosen_mean) - _log_odds(logps.rejected_mean)
    return sft(logps) - to.beta * logsigmoid(ratio)


def sft(logps: Logps) -> Tensor:
    """Negative log-prob per token of the chosen answer: the term that RPO adds (arXiv 2404.19733, eq. 1)."""
    return -logps.chosen_mean


def _smoothed(margin: Tensor, flip: float) -> Tensor:
    return -(1 - flip) * logsigmoid(margin) - flip * logsigmoid(-margin)


def _log_odds(mean: Tensor) -> Tensor:
    return mean - torch.log(-torch.expm1(mean))


LOSSES: dict[str, Loss] = {
    loss.__name__: loss
    for loss in (
        sigmoid, hinge, ipo, robust, exo_pair, apo_zero, apo_down, sppo_hard, nca_pair, simpo, orpo,
    )
}  # fmt: skip
REFERENCE_FREE = frozenset({"simpo", "orpo"})
SMOOTHABLE = frozenset({"sigmoid", "robust", "exo_pair", "simpo"})


def problems(to: Settings) -> list[str]:
    """What is wrong with the settings, a line each; the names are those of the knobs in dpo/train.sh."""
    found = []
    if to.loss_type not in LOSSES:
        found.append(f"LOSS_TYPE={to.loss_type} is unknown; known: {', '.join(LOSSES)}")
    if not to.beta > 0:
        found.append(f"BETA={to.beta} must be above 0: 0.1 is usual, 2.0 for simpo")
    if not 0 <= to.label_smoothing < 0.5:
        found.append(f"LABEL_SMOOTHING={to.label_smoothing} must be at least 0 and below 0.5")
    elif to.label_smoothing > 0 and to.loss_type in LOSSES and to.loss_type not in SMOOTHABLE:
        allowed = ", ".join(name for name in LOSSES if name in SMOOTHABLE)
        found.append(
            f"LOSS_TYPE={to.loss_type} has no label smoothing: set LABEL_SMOOTHING=0, or use one of {allowed}"
        )
    elif to.label_smoothing == 0 and to.loss_type == "exo_pair":
        found.append("LOSS_TYPE=exo_pair needs LABEL_SMOOTHING above 0: its paper uses 0.001")
    if not to.rpo_alpha >= 0:
        found.append(f"RPO_ALPHA={to.rpo_alpha} must be 0 (no SFT term) or above")
    return found


def pair_losses(logps: Logps, to: Settings) -> Tensor:
    """The n losses of LOSS_TYPE with the SFT term of RPO_ALPHA added.

    Raises:
        ValueError: the settings are not valid (see `problems`).
    """
    wrong = problems(to)
    if wrong:
        raise ValueError("; ".join(wrong))
    losses = LOSSES[to.loss_type](logps, to)
    return losses + to.rpo_alpha * sft(logps) if to.rpo_alpha else losses


def rewards(logps: Logps, to: Settings) -> tuple[Tensor, Tensor]:
    """The implicit rewards (chosen, rejected), detached: beta times the log-ratio, or the mean log-prob."""
    if to.loss_type in REFERENCE_FREE:
        return to.beta * logps.chosen_mean.detach(), to.beta * logps.rejected_mean.detach()
    return to.beta * logps.chosen_ratio.detach(), to.beta * logps.rejected_ratio.detach()


def settings_of(config: Any) -> Settings:
    """Settings from the `dpo` part of the resolved config."""
    return Settings(
        loss_type=str(config.loss_type),
        beta=float(config.beta),
        label_smoothing=float(config.label_smoothing),
        gamma=float(config.simpo_gamma),
        rpo_alpha=float(config.rpo_alpha),
    )
