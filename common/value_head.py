"""PPO's critic without flash-attn, on any machine, and with a head that starts at zero.

Upstream: ``verl.utils.model.load_valuehead_model`` hard-codes ``attn_implementation="flash_attention_2"``
and ignores ``critic.model.override_config.attn_implementation``. Without this patch a PPO run dies where
flash-attn is missing, with the words "is not a value head model, please install trl".

A language model brings no value head. Upstream's random one makes the first advantages noise (explained variance -25 in
the first step of the sample task on SmolLM2-135M); a head of zeros makes them the returns themselves.
"""

from __future__ import annotations

from typing import Any

import wrapt


def use_configured_attention(model_module: Any) -> None:
    """Replace ``load_valuehead_model`` by one that keeps the attention the config asks for.

    Architectures without a token classifier are left to upstream, which needs TRL for them.

    Args:
        model_module: the imported module ``verl.utils.model``.
    """
    upstream = model_module.load_valuehead_model

    def load_valuehead_model(
        local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool
    ) -> Any:
        from transformers import AutoModelForTokenClassification

        if not trust_remote_code and type(model_config) not in AutoModelForTokenClassification._model_mapping:
            return upstream(local_path, torch_dtype, model_config, trust_remote_code)
        model, report = AutoModelForTokenClassification.from_pretrained(
            local_path,
            config=model_config,
            dtype=torch_dtype,
            attn_implementation=model_config._attn_implementation or "sdpa",
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        for name in report["missing_keys"]:
            if name.startswith(("score.", "classifier.")):
                model.get_parameter(name).data.zero_()
        return model

    model_module.load_valuehead_model = load_valuehead_model


def install() -> None:
    """Patch ``verl.utils.model`` when it is imported; nothing happens before."""
    wrapt.register_post_import_hook(use_configured_attention, "verl.utils.model")
