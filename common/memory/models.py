"""config.json of a model: from its folder, from Hugging Face's cache, or for well-known names from models.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.cpu.model import MODEL_ALIAS, bundled_model_dir
from common.launcher.errors import UserError


def known_models() -> dict[str, dict[str, Any]]:
    """Shapes of well-known models, by name."""
    return json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8"))


def config_of(model: str) -> dict[str, Any]:
    """The content of a model's config.json.

    Args:
        model: a folder, `smollm2`, or a hub id such as Qwen/Qwen2.5-7B-Instruct.

    Raises:
        UserError: none of them, or a config.json that cannot be read.
    """
    folder = bundled_model_dir() if model == MODEL_ALIAS else Path(model).expanduser()
    file = folder / "config.json"
    if not file.is_file():
        name = model.rsplit("/", 1)[-1].removesuffix("-Instruct").lower()
        for known, config in known_models().items():
            if known.lower() == name:
                return config
        file = _cached(model)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no JSON object")
    return found


def _cached(model: str) -> Path:
    """config.json of a hub id that was fetched before; nothing is fetched now."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        found = None
    if not isinstance(found, str):
        names = ", ".join(known_models())
        raise UserError(
            f"--model {model}: no folder with a config.json, not in Hugging Face's cache, and not one of {names}, "
            "whose shapes are known"
        )
    return Path(found)
