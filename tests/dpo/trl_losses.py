"""TRL's own loss code on given log-probs; runs in TRL's environment (see test_dpo_losses.py).

stdin: {"cases": [{"loss_type", "beta", "label_smoothing", "gamma"}], "policy", "ref", "mask"}; the last three are lists
of 2n rows, n chosen, then n rejected. stdout, last line: [{"loss", "grad"}] per case.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch


class Accelerator:
    device = "cpu"

    def gather(self, value: Any) -> Any:
        return value

    gather_for_metrics = gather


def preference(case: dict, policy: torch.Tensor, ref: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    from trl import DPOTrainer

    def model(**_: Any) -> SimpleNamespace:
        zeros = torch.zeros_like(policy)
        return SimpleNamespace(
            log_probs=policy * mask, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )

    chosen, rejected = (ref * mask).sum(1).chunk(2)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=Accelerator(), aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[case["loss_type"]],
        loss_weights=[1.0], beta=case["beta"], label_smoothing=case["label_smoothing"], use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    prompt = torch.zeros(len(mask), 1)  # position 0: the token before the answer
    inputs = {
        "completion_mask": torch.cat([prompt, mask], 1).long(),
        "input_ids": torch.zeros(len(mask), mask.shape[1] + 1, dtype=torch.long),
        "attention_mask": torch.ones(len(mask), mask.shape[1] + 1, dtype=torch.long),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return DPOTrainer._compute_loss(trainer, model, inputs, False)


def reference_free(case: dict, policy: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    chosen, rejected = ((policy * mask).sum(1) / mask.sum(1)).chunk(2)
    if case["loss_type"] == "simpo":
        from trl.experimental.cpo import CPOTrainer

        trainer = SimpleNamespace(
            alpha=0.0, loss_type="simpo", simpo_gamma=case["gamma"], beta=case["beta"],
            label_smoothing=case["label_smoothing"], accelerator=Accelerator(),
        )  # fmt: skip
        return CPOTrainer.cpo_loss(trainer, chosen, rejected)[0].mean()
    from trl.experimental.orpo import ORPOTrainer

    trainer = SimpleNamespace(beta=case["beta"], accelerator=Accelerator())
    # TRL's trainer adds the chosen answers' SFT loss to minus this mean.
    return -chosen.mean() - ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0].mean()


def main() -> None:
    given = json.load(sys.stdin)
    ref, mask = torch.tensor(given["ref"]), torch.tensor(given["mask"])
    found = []
    for case in given["cases"]:
        policy = torch.tensor(given["policy"], requires_grad=True)
        free = case["loss_type"] in ("simpo", "orpo")
        loss = reference_free(case, policy, mask) if free else preference(case, policy, ref, mask)
        loss.backward()
        found.append({"loss": loss.item(), "grad": policy.grad.tolist()})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
