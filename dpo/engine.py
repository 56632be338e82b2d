"""verl's FSDP engine for preference pairs: log-probs at answer tokens, prompts shared, and the loss over pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.ulysses import ulysses_pad_and_slice_inputs
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from dpo import answer_head, losses
from dpo.losses import Logps, Settings

MODEL_TYPE = "preference_model"


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu"])
class PreferenceEngine(FSDPEngineWithLMHead):
    """Packed rows only (`use_remove_padding`). `model_output["log_probs"]` is 0 where no answer token is predicted."""

    def _build_module(self) -> Any:
        self.model_config.model_type = "language_model"  # what verl loads it as
        module = super()._build_module()
        answer_head.install(module)
        return module

    def prepare_model_inputs(self, micro_batch: Any) -> tuple[dict, dict]:
        inputs, given = super().prepare_model_inputs(micro_batch)
        # Position t predicts token t+1, over the whole packed row and before it is cut for sequence parallelism.
        wanted = torch.roll(micro_batch["loss_mask"].values(), -1).unsqueeze(0)
        if self.use_ulysses_sp:
            wanted, _, _ = ulysses_pad_and_slice_inputs(wanted, sp_size=self.ulysses_sequence_parallel_size)
        labels = given["input_ids_rmpad_rolled"].unsqueeze(0)
        wanted = torch.nn.functional.pad(wanted, (0, labels.shape[1] - wanted.shape[1]))
        inputs["answer_labels"] = torch.where(wanted > 0, labels, answer_head.IGNORE)
        if tu.get_non_tensor_data(micro_batch, "shared", default=False):
            inputs["pair_segments"] = [tuple(row) for row in micro_batch["segments"].tolist()]
        given["wanted"] = wanted[0] > 0
        return inputs, given

    def prepare_model_outputs(
        self, output: Any, output_args: dict, micro_batch: Any, logits_processor_func: Any
    ) -> dict[str, Tensor]:
        wanted = output_args["wanted"]
        every = output.log_probs.new_zeros(wanted.shape).masked_scatter(wanted, output.log_probs)
        every = self._gather_and_unpad_packed(every, output_args["pad_size"])
        return {
            "log_probs": torch.nested.nested_tensor_from_jagged(every, micro_batch["input_ids"].offsets())
        }


def answer_sums(log_probs: Any, side: Any, shared: bool) -> tuple[Tensor, Tensor]:
    """Sum the log-probs of each answer.

    Args:
        log_probs, side: nested (rows, tokens); `log_probs` at position t is that of token t+1.

    Returns:
        sums (pairs, 2) in fp32 and token counts (pairs, 2); columns are chosen and rejected.
    """
    rows = torch.arange(side.shape[0], device=side.device)
    pair = torch.repeat_interleave(rows if shared else rows // 2, side.offsets().diff())
    flat = torch.roll(side.values(), -1)
    learned = flat > 0
    index = (2 * pair + flat - 1)[learned]
    size = 2 * (len(rows) if shared else len(rows) // 2)
    values = log_probs.values()[learned].float()
    sums = values.new_zeros(size).index_add(0, index, values)
    return sums.view(-1, 2), torch.bincount(index, minlength=size).float().view(-1, 2)


def preference_loss(
    settings: Settings, model_output: dict, data: Any, dp_group: Any = None
) -> tuple[Tensor, dict[str, float]]:
    """verl's loss contract: the loss of a micro-batch, scaled so that all of them add up to the batch's mean.

    `data` holds what `dpo.batches.collate` made, `global_pairs` (pairs of the whole batch), `dp_size` and `shared`.

    Returns:
        the loss, and sums over the pairs (see `METRICS`), which `means` turns into means. A pair whose rewards are
        equal, as all are before the first step, counts half in the accuracies.
    """
    shared = tu.get_non_tensor_data(data, "shared", default=False)
    sums, tokens = answer_sums(model_output["log_probs"], data["side"], shared)
    reference, weight = data["reference"].view(-1, 2), data["weight"].view(-1, 2)[:, 0]
    logps = Logps(*sums.unbind(1), *reference.unbind(1), *tokens.unbind(1))
    each = losses.pair_losses(logps, settings)
    loss = (each * weight).sum() / data["global_pairs"] * data["dp_size"]
    with torch.no_grad():
        chosen, rejected = losses.rewards(logps, settings)
        values = [
            torch.ones_like(weight), chosen, rejected, chosen - rejected, (torch.sign(chosen - rejected) + 1) / 2,
            *sums.unbind(1), *reference.unbind(1), *tokens.unbind(1),
        ]  # fmt: skip
        totals = (torch.stack(values) * weight).sum(1).tolist()
    return loss, dict(zip(METRICS, totals, strict=True))


METRICS = (
    "pairs", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
    "logps/chosen", "logps/rejected", "logps/ref_chosen", "logps/ref_rejected",
    "answer_length/chosen", "answer_length/rejected",
)  # fmt: skip


def _total(values: Any) -> float:
    return sum(_total(value) for value in values) if isinstance(values, list) else float(values)


def metric_sums(metrics: dict[str, Any]) -> dict[str, float]:
    """Sums over all micro-batches and processes of the metrics that `preference_loss` returned."""
    return {name: _total(metrics.pop(name)) for name in METRICS}


def means(sums: dict[str, float]) -> dict[str, float]:
    """Means over the pairs."""
    pairs = sums["pairs"]
    return {name: total / pairs for name, total in sums.items() if name != "pairs"}
