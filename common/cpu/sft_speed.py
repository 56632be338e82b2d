"""verl's ``model.external_lib`` for SFT on the CPU: no arithmetic whose result nobody reads.

Upstream (verl 0.9.1) computes log-probs of every token, masks most of them afterwards, and with fused kernels
computes entropies that SFT never reads and the logits a second time in the backward pass. Here logits are computed
for learned tokens only, and fp32 layers run as in common/cpu/lean_layers.py. Values and gradients are the same.
"""

from __future__ import annotations

from typing import Any

import wrapt

from common.cpu import lean_layers

# A label that means: no loss on the next token, and nobody reads entropies.
UNLEARNED = -101
# Above this many learned tokens in a micro-batch their logits would fill the memory; upstream's chunks take over.
MOST_ROWS = 4096


def label_learned(transformer_impl: Any) -> None:
    """Hand the model labels that are set where the next token has a loss.

    Upstream: ``FSDPEngineWithLMHead.prepare_model_inputs``, whose labels are the rolled ids of all tokens.
    """
    import torch

    engine = transformer_impl.FSDPEngineWithLMHead
    original = engine.prepare_model_inputs

    def prepare_model_inputs(self: Any, micro_batch: Any) -> tuple[dict, dict]:
        inputs, output_args = original(self, micro_batch)
        if "return_dict" not in inputs or "loss_mask" not in micro_batch or "responses" in micro_batch:
            return inputs, output_args
        ids, mask = micro_batch["input_ids"], micro_batch["loss_mask"]
        # As verl.workers.utils.losses.sft_loss aligns them: position t predicts token t + 1.
        labels = torch.where(
            torch.roll(mask.values(), -1).bool(),
            torch.roll(ids.values(), -1),
            torch.full_like(ids.values(), UNLEARNED),
        )
        if "shift_labels" not in inputs:
            nested = torch.nested.nested_tensor_from_jagged(labels, ids.offsets())
            inputs["shift_labels"] = torch.nested.to_padded_tensor(
                nested, padding=UNLEARNED, output_size=inputs["input_ids"].shape
            )
        elif inputs["shift_labels"].numel() == labels.numel():  # not split over sequence-parallel ranks
            inputs["shift_labels"] = labels.unsqueeze(0)
        return inputs, output_args

    engine.prepare_model_inputs = prepare_model_inputs


def log_probs_of_learned(torch_functional: Any) -> None:
    """Compute log-probs of labelled rows only; the others, and all entropies, are 0.

    Upstream: ``verl.utils.experimental.torch_functional.FusedLinearForPPO.forward``.
    """
    import torch
    from torch.nn.functional import cross_entropy

    fused = torch_functional.FusedLinearForPPO
    original = fused.forward

    def forward(
        self: Any, hidden_states: Any, vocab_weights: Any, input_ids: Any, temperature: float = 1.0
    ) -> Any:
        wanted = input_ids != UNLEARNED
        if bool(wanted.all()):
            return original(self, hidden_states, vocab_weights, input_ids, temperature)
        rows, labels = hidden_states[wanted], input_ids[wanted].long()
        if len(rows) > MOST_ROWS:
            found = original(self, rows, vocab_weights, labels, temperature)[0]
        else:
            logits = lean_layers.linear(rows, vocab_weights.to(rows.dtype)).float()
            found = -cross_entropy(
                logits if temperature == 1.0 else logits / temperature, labels, reduction="none"
            )
        log_probs = found.new_zeros(input_ids.shape).index_put((wanted,), found)
        return log_probs, torch.zeros_like(log_probs, requires_grad=False)

    fused.forward = forward


def lean_model(transformer_impl: Any) -> None:
    """Build every model with the layers of common/cpu/lean_layers.py.

    Upstream: ``FSDPEngine._build_module``.
    """
    engine = transformer_impl.FSDPEngine
    original = engine._build_module

    def build_module(self: Any) -> Any:
        module = original(self)
        lean_layers.install(module)
        return module

    engine._build_module = build_module


def install() -> None:
    """Patch verl when its modules are imported, or now if they are."""
    hook = wrapt.register_post_import_hook
    hook(label_learned, "verl.workers.engine.fsdp.transformer_impl")
    hook(lean_model, "verl.workers.engine.fsdp.transformer_impl")
    hook(log_probs_of_learned, "verl.utils.experimental.torch_functional")


install()
