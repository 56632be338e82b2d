"""Compute vocabulary logits only where an answer token is predicted.

Upstream (verl 0.9.1) computes log-probs and entropies of prompt tokens too and masks them afterwards. With short
answers most of a CPU step would go into logits that nobody reads. Values at answer tokens are the same.
"""

from __future__ import annotations

from typing import Any

IGNORE = -100


def answer_labels(input_ids: Any, prompt_lengths: Any, response_lengths: Any) -> Any:
    """Next-token labels, IGNORE wherever the next token is not part of the answer.

    Args:
        input_ids: (batch, length) right-padded prompt + answer tokens, or (1, tokens) packed ones.
        prompt_lengths, response_lengths: (batch,) token counts.

    Returns:
        Labels of the same shape; position t holds token t+1, as ``torch.roll(input_ids, -1, 1)`` does.
    """
    import torch

    labels = torch.roll(input_ids, shifts=-1, dims=1)
    if input_ids.shape[0] != len(prompt_lengths):  # packed: where in its sequence each token stands
        lengths = prompt_lengths + response_lengths
        start = lengths.cumsum(0) - lengths
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        position = (position - start.repeat_interleave(lengths)).unsqueeze(0)
        first = (prompt_lengths - 1).repeat_interleave(lengths).unsqueeze(0)
        count = response_lengths.repeat_interleave(lengths).unsqueeze(0)
    else:
        position = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        first, count = prompt_lengths.unsqueeze(1) - 1, response_lengths.unsqueeze(1)
    answer = (position >= first) & (position < first + count)
    return torch.where(answer, labels, IGNORE)


def label_answers(transformer_impl: Any) -> None:
    """Hand the model labels that are set at answer tokens only (with fused kernels).

    Upstream: ``FSDPEngineWithLMHead.prepare_model_inputs``, which passes ``shift_labels`` for packed batches and
    leaves padded ones to roll ``input_ids`` themselves.
    """
    engine = transformer_impl.FSDPEngineWithLMHead
    original = engine.prepare_model_inputs

    def prepare_model_inputs(self: Any, micro_batch: Any) -> tuple[dict, dict]:
        inputs, output_args = original(self, micro_batch)
        if "return_dict" not in inputs or "prompts" not in micro_batch or "responses" not in micro_batch:
            return inputs, output_args
        prompts, responses = micro_batch["prompts"], micro_batch["responses"]
        # A packed row that sequence parallelism has split keeps upstream's labels.
        split = (
            "shift_labels" in inputs
            and inputs["input_ids"].shape[1] != micro_batch["input_ids"].offsets()[-1]
        )
        if prompts.is_nested and responses.is_nested and not split:
            inputs["shift_labels"] = answer_labels(
                inputs["input_ids"], prompts.offsets().diff(), responses.offsets().diff()
            )
        return inputs, output_args

    engine.prepare_model_inputs = prepare_model_inputs


def skip_ignored_labels(torch_functional: Any) -> None:
    """Compute fused log-probs and entropies of labelled rows only; the others are 0.

    Upstream: ``verl.utils.experimental.torch_functional.FusedLinearForPPO.forward``.
    """
    fused = torch_functional.FusedLinearForPPO
    original = fused.forward

    def forward(
        self: Any, hidden_states: Any, vocab_weights: Any, input_ids: Any, temperature: float = 1.0
    ) -> Any:
        wanted = input_ids != IGNORE
        if bool(wanted.all()):
            return original(self, hidden_states, vocab_weights, input_ids, temperature)
        rows = original(self, hidden_states[wanted], vocab_weights, input_ids[wanted], temperature)
        return tuple(row.new_zeros(input_ids.shape).index_put((wanted,), row) for row in rows)

    fused.forward = forward
