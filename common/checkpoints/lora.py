"""LoRA: an adapter folder out of verl's shards, and adapters folded into their base, never without effect."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from common.checkpoints.errors import CheckpointError
from common.checkpoints.place import LORA_META, Checkpoint

_PART = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])\.(?:default\.)?weight$")
_PREFIX = "base_model.model."
ADAPTER = "lora_adapter"


def split_state(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(base weights under their own names, adapter weights under PEFT's) of a PEFT model's state dict.

    Raises:
        CheckpointError: an adapter of a kind that verl's LoRA does not write.
    """
    base, adapter = {}, {}
    for name, tensor in state.items():
        match = _PART.match(name)
        if match:
            adapter[f"{match['module']}.lora_{match['side']}.weight"] = tensor
        elif "lora_" in name or "modules_to_save" in name:
            raise CheckpointError(f"{name}: this kind of adapter weight is not supported; merge it with PEFT")
        else:
            base[name.removeprefix(_PREFIX).replace(".base_layer.", ".")] = tensor
    return base, adapter


def alpha_of(folder: Path, given: float | None) -> tuple[int, float, str | None]:
    """(rank or 0, lora_alpha, task type) that verl recorded beside the shards.

    Raises:
        CheckpointError: no alpha, or 0, with which the adapter would have no effect.
    """
    try:
        meta = json.loads((folder / LORA_META).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        meta = {}
    alpha = given if given is not None else float(meta.get("lora_alpha") or 0)
    if alpha == 0:
        raise CheckpointError(
            f"{folder}: lora_alpha is 0 or not recorded ({LORA_META}), so the adapter would have no effect; "
            "give the value of the training with --lora_alpha"
        )
    return int(meta.get("r") or 0), alpha, meta.get("task_type")


def write_adapter(
    folder: Path, adapter: dict[str, Any], source: Path, alpha: float | None, base: str
) -> Path:
    """Save *adapter* in PEFT's form below *folder*; returns its path.

    Args:
        folder: where `lora_adapter/` is made.
        adapter: weights under PEFT's names, A of (rank, in) and B of (out, rank).
        source: verl's folder, for `lora_train_meta.json`.
        alpha: instead of the recorded one.
        base: recorded as `base_model_name_or_path`.
    """
    import peft
    from safetensors.torch import save_file

    recorded, alpha, task = alpha_of(source, alpha)
    ranks = {tensor.shape[0] for name, tensor in adapter.items() if ".lora_A." in name}
    if len(ranks) != 1 or (recorded and recorded not in ranks):
        raise CheckpointError(
            f"{source}: adapter ranks {sorted(ranks)}, {LORA_META} says {recorded or 'nothing'}"
        )
    target = folder / ADAPTER
    target.mkdir(parents=True)
    modules = sorted({name.split(".lora_")[0].removeprefix(_PREFIX) for name in adapter})
    # PEFT takes whole numbers as alpha in its type, fractions in its arithmetic.
    config = peft.LoraConfig(r=ranks.pop(), lora_alpha=alpha, target_modules=modules, task_type=task)  # type: ignore[arg-type]
    config.base_model_name_or_path = base
    config.save_pretrained(str(target))
    tensors = {name: tensor.clone().contiguous() for name, tensor in adapter.items()}
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target


def base_of(checkpoint: Checkpoint) -> str:
    """The model that an adapter belongs to: the one named, the run's, or the adapter's own word.

    Raises:
        CheckpointError: nobody knows it.
    """
    if checkpoint.base:
        return checkpoint.base
    recorded = checkpoint.record().get("model_dir", "")
    if not recorded and checkpoint.kind == "adapter":
        config = json.loads((Path(checkpoint.path) / "adapter_config.json").read_text(encoding="utf-8"))
        recorded = config.get("base_model_name_or_path") or ""
    if not recorded:
        raise CheckpointError(f"{checkpoint.path}: its base model is not recorded; give --base_model")
    return str(recorded)


def fold(model: Any, adapter: Path) -> tuple[Any, dict[str, float]]:
    """Add an adapter to *model*'s weights.

    Args:
        model: the base, in float32 so that small updates are not rounded away.
        adapter: PEFT folder.

    Returns:
        (the model, {"lora_norm": length of all updates, "lora_modules": how many weights changed}).

    Raises:
        CheckpointError: the adapter does not fit.
    """
    import peft

    config = peft.PeftConfig.from_pretrained(str(adapter))
    if config.peft_type != "LORA":
        raise CheckpointError(f"{adapter}: a {config.peft_type} adapter; only LoRA can be folded in")
    if not getattr(config, "lora_alpha", 0):
        raise CheckpointError(
            f"{adapter}: lora_alpha is 0, so the adapter would have no effect; "
            "put the value of the training into its adapter_config.json"
        )
    try:
        wrapped = peft.PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{adapter}: does not fit its base model ({reason})") from None
    changed, total = 0, 0.0
    module: Any
    for module in wrapped.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer) and hasattr(module, "get_delta_weight"):
            norm = float(module.get_delta_weight("default").norm())
            changed, total = changed + (norm > 0), total + norm**2
    return wrapped.merge_and_unload(safe_merge=True), {"lora_norm": total**0.5, "lora_modules": changed}
