"""verl's FSDP engine on the CPU: no arithmetic whose result nobody reads, and the layers of lean_layers.py.

Upstream (verl 0.9.1) computes log-probs and entropies of every token and masks most of them afterwards; with fused
kernels it computes the logits a second time for the backward pass, and for SFT entropies that nobody reads. Here
logits are computed only where the next token is part of an answer or learned. Values and gradients are the same.
"""

from __future__ import annotations

from typing import Any

from common.cpu import lean_layers, lean_lora

# Labels of rows that nobody reads, where the others need log-probs and entropies, and where log-probs alone.
UNREAD, UNREAD_NO_ENTROPY = -100, -101
# With more rows than this in a micro-batch their logits would fill the memory; upstream's chunks take over.
MOST_ROWS = 4096


def answer_labels(input_ids: Any, prompt_lengths: Any, response_lengths: Any, unread: int = UNREAD) -> Any:
    """Next-token labels, *unread* wherever the next token is not part of the answer.

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
    return torch.where(answer, labels, unread)


def learned_labels(ids: Any, loss_mask: Any, inputs: dict) -> Any:
    """Next-token labels, unread wherever the next token has no loss (``verl.workers.utils.losses.sft_loss``).

    Args:
        ids, loss_mask: nested (batch, jagged) tokens and their loss masks.
        inputs: the model's, padded or packed.

    Returns:
        Labels of the shape of ``inputs["input_ids"]``.
    """
    import torch

    labels = torch.where(
        torch.roll(loss_mask.values(), -1).bool(),
        torch.roll(ids.values(), -1),
        torch.full_like(ids.values(), UNREAD_NO_ENTROPY),
    )
    if "shift_labels" in inputs:
        return labels.unsqueeze(0)
    nested = torch.nested.nested_tensor_from_jagged(labels, ids.offsets())
    return torch.nested.to_padded_tensor(
        nested, padding=UNREAD_NO_ENTROPY, output_size=inputs["input_ids"].shape
    )


def label_wanted(transformer_impl: Any) -> None:
    """Hand the model labels that are set where somebody reads the log-prob (with fused kernels).

    Upstream: ``FSDPEngineWithLMHead.prepare_model_inputs``, which passes ``shift_labels`` of all tokens for packed
    batches and leaves padded ones to roll ``input_ids`` themselves.
    """
    from verl.utils import tensordict_utils as tu

    engine = transformer_impl.FSDPEngineWithLMHead
    original = engine.prepare_model_inputs

    def prepare_model_inputs(self: Any, micro_batch: Any) -> tuple[dict, dict]:
        inputs, output_args = original(self, micro_batch)
        ids = micro_batch["input_ids"]
        # A packed row that sequence parallelism has split keeps upstream's labels.
        split = "shift_labels" in inputs and inputs["input_ids"].shape[1] != ids.offsets()[-1]
        if "return_dict" not in inputs or split:
            return inputs, output_args
        if "prompts" in micro_batch and "responses" in micro_batch:
            prompts, responses = micro_batch["prompts"], micro_batch["responses"]
            if prompts.is_nested and responses.is_nested:
                entropies = tu.get_non_tensor_data(micro_batch, "calculate_entropy", default=False)
                inputs["shift_labels"] = answer_labels(
                    inputs["input_ids"],
                    prompts.offsets().diff(),
                    responses.offsets().diff(),
                    UNREAD if entropies else UNREAD_NO_ENTROPY,
                )
        elif "loss_mask" in micro_batch:
            inputs["shift_labels"] = learned_labels(ids, micro_batch["loss_mask"], inputs)
        return inputs, output_args

    engine.prepare_model_inputs = prepare_model_inputs


def log_probs_of_wanted(torch_functional: Any) -> None:
    """Compute log-probs and entropies of labelled rows only; the others are 0, and so are entropies nobody reads.

    Upstream: ``verl.utils.experimental.torch_functional.FusedLinearForPPO.forward``.
    """
    from torch.nn.functional import log_softmax

    fused = torch_functional.FusedLinearForPPO
    original = fused.forward

    def forward(
        self: Any, hidden_states: Any, vocab_weights: Any, input_ids: Any, temperature: float = 1.0
    ) -> Any:
        wanted = input_ids >= 0
        if bool(wanted.all()):
            return original(self, hidden_states, vocab_weights, input_ids, temperature)
        rows, labels = hidden_states[wanted], input_ids[wanted].long()
        if len(rows) > MOST_ROWS:
            found = original(self, rows, vocab_weights, labels, temperature)
        else:
            logits = lean_layers.linear(rows, vocab_weights.to(rows.dtype)).float()
            every = log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
            entropies = every.new_zeros(len(rows))
            if not bool((input_ids == UNREAD_NO_ENTROPY).any()):
                entropies = -(every.exp() * every).sum(-1)
            found = (every.gather(-1, labels.unsqueeze(-1)).squeeze(-1), entropies)
        return tuple(row.new_zeros(input_ids.shape).index_put((wanted,), row) for row in found)

    fused.forward = forward


def lean_model(transformer_impl: Any) -> None:
    """Build every model with the layers of common/cpu/lean_layers.py, and its adapters with lean_lora.py's.

    Upstream: ``FSDPEngine._build_module``, ``_build_lora_module``.
    """
    engine = transformer_impl.FSDPEngine
    original, with_adapters = engine._build_module, engine._build_lora_module

    def build_module(self: Any) -> Any:
        module = original(self)
        lean_layers.install(module)
        return module

    def build_lora_module(self: Any, module: Any) -> Any:
        wrapped = with_adapters(self, module)
        lean_lora.install(wrapped)
        return wrapped

    engine._build_module, engine._build_lora_module = build_module, build_lora_module
