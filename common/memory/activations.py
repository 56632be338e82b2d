"""What a decoder keeps between the forward and the backward pass, per token.

Counted from the code that runs: the layers of transformers 5.9.0 (``modeling_llama.py`` and its kin) under autograd,
and on the CPU those of ``common/cpu/lean_layers.py``. h, f, q, k are the widths of the residual stream, the MLP, all
query heads and all key heads; c the bytes of the dtype that the model computes in.
"""

from __future__ import annotations

from common.memory.architecture import Shape
from common.memory.settings import Engine

# The families that common/cpu/lean_layers.py knows.
LEAN = ("llama", "qwen2", "qwen3", "mistral")
# verl.utils.experimental.torch_functional.FusedLinearForPPO: rows of logits at a time.
FUSED_ROWS = 512
# dpo/answer_head.py: logits held at once, in elements.
ANSWER_ELEMENTS = 2**25
# common/cpu/lean_engine.py: above this many wanted tokens upstream's chunks take over.
WANTED_ROWS = 4096


def layer_bytes(engine: Engine) -> int:
    """Bytes per token that one decoder layer saves for its backward pass."""
    shape, c = engine.shape, engine.compute
    lean = engine.lean and shape.family in LEAN
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    exact = lean and c == 4
    # RMSNorm: its input in fp32, the normed input where the weight learns, the output; the lean one all but that.
    # Gemma's computes in fp32 to the end.
    normed = 4 if shape.family.startswith("gemma") else c
    norm = shape.hidden * (4 + c + (0 if exact or engine.adapter else normed))
    # Attention: q and k after RoPE, v, the output twice (as the kernel's and as o_proj's input), logsumexp in fp32.
    attention = c * (3 * query + 2 * key) + 4 * shape.heads
    if shape.family == "phi3":  # v is a part of one tensor, which stays whole
        attention += c * (query + key)
    if shape.qk_norm:
        attention += (query + key) * (4 + (0 if exact else c))
    return 2 * norm + attention + _mlp(shape, c, lean, again=exact and not engine.adapter)


def _mlp(shape: Shape, compute: int, lean: bool, again: bool) -> int:
    """SwiGLU keeps gate, silu(gate), up and their product; the lean one gate and up.

    Args:
        again: the lean one makes their product again; not in bf16, nor where an adapter reads it.
    """
    kept = 4 if not lean else 2 if again else 3
    if not shape.moe_layers:
        return kept * compute * shape.ffn
    # Each token goes through `active` experts, which take their own copy of it and give one back.
    width = shape.active * shape.expert_ffn + shape.shared_ffn
    moe = kept * compute * width + 2 * compute * shape.active * shape.hidden
    return max(moe, kept * compute * shape.ffn if shape.moe_layers < shape.layers else 0)


def saved(engine: Engine) -> int:
    """Bytes of all activations when the backward pass begins."""
    shape, tokens = engine.shape, engine.train_tokens
    stream = engine.compute * shape.hidden
    head = shape.hidden * (4 + 2 * engine.compute)  # the final norm
    adapter = 0
    if engine.adapter:
        # lora_A's output per adapted matrix; the input is saved already.
        adapter = engine.compute * engine.adapter // max(1, 2 * shape.hidden)
    if engine.checkpointing:
        return tokens * (shape.layers * stream + head)
    each = layer_bytes(engine)
    return tokens * (shape.layers * each + stream + head + adapter)


def working(engine: Engine) -> int:
    """Bytes of one layer in its backward pass: recomputed where checkpointed, and the gradients of its MLP."""
    shape = engine.shape
    width = max(shape.ffn, shape.active * shape.expert_ffn + shape.shared_ffn)
    own = layer_bytes(engine) if engine.checkpointing else 0
    return engine.train_tokens * (own + engine.compute * (3 * width + 2 * shape.hidden))


def passing(engine: Engine) -> int:
    """Bytes of one layer in a forward pass without gradients."""
    shape = engine.shape
    width = max(shape.ffn, shape.active * shape.expert_ffn + shape.shared_ffn)
    return engine.infer_tokens * (4 * engine.compute * width + (8 + 3 * engine.compute) * shape.hidden)


def logits_update(engine: Engine) -> int:
    """Bytes of logits and of what is computed from them, at their most in an update.

    Sources: verl's ``FSDPEngineWithLMHead.prepare_model_outputs`` and ``logprobs_from_logits`` (flash-attn's
    cross-entropy writes its gradient over the logits; without it log_softmax is kept in fp32, row by row),
    ``FusedLinearForPPO``, ``dpo/answer_head.py``, ``common/cpu/lean_engine.py``.
    """
    vocab, c = engine.shape.vocab, engine.compute
    rows = round(engine.train_tokens * engine.scored)
    if engine.head == "value":
        return 8 * rows
    if engine.head == "answers":
        held = min(rows, max(1, ANSWER_ELEMENTS // vocab))
        return held * vocab * (4 + (2 if c == 2 else 0))
    if engine.head == "wanted" and rows <= WANTED_ROWS:
        # in fp32 log_softmax, its gradient and that of what was read of it; for entropies the probabilities too
        return rows * vocab * (12 + (4 if engine.entropies else 0) + (2 if c == 2 else 0))
    if engine.head in ("fused", "wanted"):
        # logits, softmax, one-hot, their difference and its product in fp32; more where the entropy has a gradient
        return min(rows, FUSED_ROWS) * vocab * (20 + c + (12 if engine.entropy_update else 0))
    each = c * (2 if engine.scaled_logits else 1)
    if engine.head == "unfused":
        each += 4 + 2 * c if c == 2 else 12
    elif engine.entropy_update or engine.scaled_logits:
        each += c
    total = rows * vocab * each
    if engine.entropy_update:
        kept = min(rows, engine.entropy_chunk) if engine.entropy_chunk else rows
        total += kept * vocab * 8
    return total


def logits_slope(engine: Engine) -> int:
    """Bytes of the gradient of the logits while it goes back through the head."""
    vocab, c = engine.shape.vocab, engine.compute
    rows = round(engine.train_tokens * engine.scored)
    if engine.head in ("fused", "answers", "value") or (engine.head == "wanted" and rows > WANTED_ROWS):
        return logits_update(engine)  # a chunk is made, used and thrown away inside the head's backward pass
    if engine.head == "wanted":
        return rows * vocab * (4 if c == 4 else 4 + c)
    return rows * vocab * c


def logits_infer(engine: Engine, entropy: bool) -> int:
    """Bytes of logits in a forward pass without gradients.

    Args:
        entropy: whether entropies are computed (old log-probs: yes; the reference: no).
    """
    vocab, c = engine.shape.vocab, engine.compute
    rows = round(engine.infer_tokens * engine.scored)
    if engine.head == "value":
        return 4 * rows
    if engine.head == "answers":
        return min(rows, max(1, ANSWER_ELEMENTS // vocab)) * vocab * (4 + (2 if c == 2 else 0))
    if engine.head == "wanted" and rows <= WANTED_ROWS:
        return rows * vocab * (16 if engine.entropies else 8)
    if engine.head in ("fused", "wanted"):
        return min(rows, FUSED_ROWS) * vocab * (16 + c)
    total = rows * vocab * c * (2 if engine.scaled_logits else 1)
    if entropy and not engine.compiled_entropy:
        total += (min(rows, engine.entropy_chunk) if engine.entropy_chunk else rows) * vocab * 12
    return total
