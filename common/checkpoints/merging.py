"""Any checkpoint as a Hugging Face folder: shards joined, LoRA folded in, once, into the cache."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.checkpoints import lora, naming, place
from common.checkpoints.errors import CheckpointError
from common.checkpoints.place import Checkpoint
from common.cpu.model import cache_root
from common.data_utils.atomic import clear_stale, temp_beside

MARK = "merged.json"
_DTYPE = re.compile(r"(?:rollout\.dtype=|param_dtype[:=] ?)(float32|bfloat16|float16)")
_TOKENIZER = ("tokenizer", "chat_template", "special_tokens", "vocab", "merges", "added_")
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Merged:
    """A model ready to load.

    Attributes:
        path: Hugging Face folder, or a hub id.
        dtype: precision to load it in, e.g. "bfloat16"; "auto" for a hub id.
        dtype_from: who says so.
        checkpoint: where it came from.
        info: of a merge: `lora_norm`, `lora_modules`, `seconds`.
    """

    path: str
    dtype: str
    dtype_from: str
    checkpoint: Checkpoint
    info: dict[str, Any] = field(default_factory=dict)


def run_dtype(checkpoint: Checkpoint, folder: Path) -> tuple[str, str]:
    """(precision, who says so): the run's rollouts or compute, else config.json's `dtype`."""
    words = " ".join(map(str, checkpoint.record().get("command") or []))
    found = _DTYPE.search(words)
    if found:
        return found[1], "the run"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read ({error})") from None
    named = config.get("dtype") or config.get("torch_dtype")
    return (str(named), "config.json") if named else ("bfloat16", "default; config.json names none")


def merge(
    checkpoint: Checkpoint,
    *,
    lora_alpha: float | None = None,
    dtype: str = "auto",
    quiet: bool = False,
    unchanged: bool = False,
) -> Merged:
    """A folder that transformers and vLLM load; merged into the cache first where need be, then reused.

    Args:
        checkpoint: from `resolve`.
        lora_alpha: instead of the recorded one.
        dtype: of the merged weights; "auto" = the precision that the run computed in.
        quiet: no line on stderr about a merge.
        unchanged: a LoRA without effect is no error.

    Raises:
        CheckpointError: incomplete or damaged, a LoRA without effect, no base, no room.
    """
    if checkpoint.kind == "hub":
        return Merged(checkpoint.path, "auto", "the model", checkpoint)
    source = Path(checkpoint.path)
    if checkpoint.kind == "hf":
        return Merged(checkpoint.path, *run_dtype(checkpoint, source), checkpoint)
    base = _base_folder(checkpoint) if checkpoint.kind in ("adapter", "lora_shards") else ""
    config = source / "huggingface" if checkpoint.kind != "adapter" else Path(base)
    if checkpoint.kind == "megatron":
        config = source / "model" / "huggingface"
    said, who = run_dtype(checkpoint, config)
    wanted = said if dtype == "auto" else _SHORT.get(dtype, dtype)
    target = _target(checkpoint, base, wanted, lora_alpha)
    if not (target / MARK).is_file():
        _make(checkpoint, target, base, wanted, lora_alpha, quiet, unchanged)
    info = json.loads((target / MARK).read_text(encoding="utf-8"))
    return Merged(str(target), wanted, who if dtype == "auto" else "--dtype", checkpoint, info)


def _base_folder(checkpoint: Checkpoint) -> str:
    """Local folder of the base; itself merged when it is a checkpoint, downloaded when it is a hub id."""
    named = lora.base_of(checkpoint)
    try:
        base = merge(naming.resolve(named))
    except CheckpointError as error:
        raise CheckpointError(f"base model of {checkpoint.title}: {error}; or give --base_model") from None
    if base.checkpoint.kind != "hub":
        return base.path
    from huggingface_hub import snapshot_download

    return snapshot_download(base.path, ignore_patterns=["*.gguf", "*.pth", "original/*"])


def _target(checkpoint: Checkpoint, base: str, dtype: str, alpha: float | None) -> Path:
    """Cache folder for these very files: another size, time or base is another folder."""
    files = sorted(p for p in Path(checkpoint.path).iterdir() if p.suffix in (".pt", ".json", ".safetensors"))
    stamps = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files if "optim" not in p.name]
    key = json.dumps([checkpoint.path, stamps, base, dtype, alpha])
    name = re.sub(r"[^\w.-]+", "-", checkpoint.title if checkpoint.run else Path(checkpoint.path).name)
    return cache_root() / "merged" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _make(
    checkpoint: Checkpoint,
    target: Path,
    base: str,
    dtype: str,
    alpha: float | None,
    quiet: bool,
    unchanged: bool,
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_stale(target.parent)
    _check_room(checkpoint, base, target.parent)
    if not quiet:
        print(f"note: merging {checkpoint.title} once into {target}", file=sys.stderr, flush=True)
    begin = time.monotonic()
    work = temp_beside(target)
    try:
        work.mkdir()
        maker = {"adapter": _from_adapter, "lora_shards": _from_lora_shards, "shards": _from_shards}
        if checkpoint.kind == "megatron":
            info = _from_megatron(Path(checkpoint.path), work)
        else:
            info = maker[checkpoint.kind](checkpoint, work, base, dtype, alpha)
        if info.get("lora_modules") == 0 and not unchanged:
            raise CheckpointError(
                f"{checkpoint.path}: the adapter is all zeros: the model would be exactly its base"
            )
        info |= {"source": checkpoint.path, "base": base, "seconds": round(time.monotonic() - begin, 1)}
        (work / MARK).write_text(json.dumps(info), encoding="utf-8")
        try:
            work.rename(target)
        except OSError:
            if not (target / MARK).is_file():  # else another process was faster
                raise
    except OSError as error:
        raise CheckpointError(f"merging into {target}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_room(checkpoint: Checkpoint, base: str, folder: Path) -> None:
    files = [
        *Path(checkpoint.path).glob("model_world_size_*.pt"),
        *(Path(base).glob("*.safetensors") if base else ()),
    ]
    need = sum(path.stat().st_size for path in files)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise CheckpointError(
            f"merging {checkpoint.title} needs up to {need / 2**30:.1f} GiB in {folder}, {free / 2**30:.1f} GiB "
            "are free: make room, or put the cache elsewhere with VERL_TRAINING_CACHE"
        )


def _from_shards(
    checkpoint: Checkpoint, work: Path, base: str, dtype: str, alpha: float | None
) -> dict[str, Any]:
    from common.checkpoints.shards import whole_state

    source = Path(checkpoint.path)
    state = whole_state(source, dtype)
    if any("lora_" in name for name in state):
        raise CheckpointError(
            f"{source} holds LoRA weights but no {place.LORA_META} with their alpha: "
            f'write {{"lora_alpha": ALPHA}} into it'
        )
    _save_state(state, source / "huggingface", work, dtype)
    return {}


def _from_lora_shards(
    checkpoint: Checkpoint, work: Path, base: str, dtype: str, alpha: float | None
) -> dict[str, Any]:
    from common.checkpoints.shards import whole_state

    source = Path(checkpoint.path)
    weights, adapter = lora.split_state(whole_state(source))
    if not adapter:
        raise CheckpointError(f"{source} has {place.LORA_META} but no LoRA weights in its shards")
    written = lora.write_adapter(work, adapter, source, alpha, base)
    return _fold(Path(base), weights, written, source / "huggingface", work, dtype)


def _from_adapter(
    checkpoint: Checkpoint, work: Path, base: str, dtype: str, alpha: float | None
) -> dict[str, Any]:
    adapter, tokenizer = Path(checkpoint.path), Path(checkpoint.path)
    if alpha is not None:
        changed = work / lora.ADAPTER
        shutil.copytree(adapter, changed, ignore=shutil.ignore_patterns("checkpoint-*"))
        config = json.loads((changed / "adapter_config.json").read_text(encoding="utf-8"))
        (changed / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": alpha}))
        adapter = changed
    if not (tokenizer / "tokenizer_config.json").is_file():
        tokenizer = Path(base)
    return _fold(Path(base), {}, adapter, tokenizer, work, dtype)


def _fold(
    base: Path, weights: dict[str, Any], adapter: Path, tokenizer: Path, work: Path, dtype: str
) -> dict[str, Any]:
    """Base (with *weights* in place of its own, where the checkpoint carries them) + adapter -> *work*."""
    import torch
    from transformers import AutoModelForCausalLM

    no_loading_bars()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if weights:
        missing, unexpected = model.load_state_dict(weights, strict=False)
        untied = [name for name in missing if not (name == "lm_head.weight" and _tied(model.config))]
        if untied or unexpected:
            raise CheckpointError(f"{base} does not fit the shards: {', '.join([*untied, *unexpected][:3])}")
    folded, info = lora.fold(model, adapter)
    folded.to(getattr(torch, dtype)).save_pretrained(work)
    _copy_side_files(base, work)
    _copy_side_files(tokenizer, work)
    return info


def no_loading_bars() -> None:
    """Keep transformers' bars over weight files off the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _save_state(state: dict[str, Any], config: Path, work: Path, dtype: str) -> None:
    from huggingface_hub import save_torch_state_dict
    from transformers import AutoConfig

    if _tied(AutoConfig.from_pretrained(config)):
        state.pop("lm_head.weight", None)
    save_torch_state_dict(state, str(work), metadata={"format": "pt"})
    _copy_side_files(config, work)
    named = json.loads((work / "config.json").read_text(encoding="utf-8"))
    named.pop("torch_dtype", None)
    (work / "config.json").write_text(json.dumps({**named, "dtype": dtype}, indent=2), encoding="utf-8")


def _tied(config: Any) -> bool:
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def _copy_side_files(source: Path, target: Path) -> None:
    """Config, tokenizer and template; files that *target* has already stay, except for tokenizer and template."""
    for path in source.iterdir():
        weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf") or path.name.endswith(
            ".index.json"
        )
        if not path.is_file() or weights or path.name in (MARK, "adapter_config.json", "README.md"):
            continue
        if path.name.startswith(_TOKENIZER) or not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)


def _from_megatron(source: Path, work: Path) -> dict[str, Any]:
    """verl's own merger, which needs megatron-core, in a process of its own."""
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "megatron"]
    command += ["--local_dir", str(source), "--target_dir", str(work), "--use_cpu_initialization"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(f"{source}: verl.model_merger failed: {reason}")
    return {}


def export(
    checkpoint: Checkpoint, target: Path, *, lora_alpha: float | None = None, dtype: str = "auto"
) -> Merged:
    """A copy of the merged model that depends on nothing else: to serve, to share, to upload.

    Raises:
        CheckpointError: *target* exists and is not empty, or as `merge`.
    """
    target = target.expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists and is not empty: choose another folder")
    merged = merge(checkpoint, lora_alpha=lora_alpha, dtype=dtype)
    if merged.checkpoint.kind == "hub":
        raise CheckpointError(f"{merged.path} is on the hub already: hf download {merged.path}")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".export-", dir=target.parent))
    try:
        shutil.copytree(merged.path, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MARK))
        work.chmod(0o755)
        if target.is_dir():
            target.rmdir()
        work.rename(target)
    except OSError as error:
        raise CheckpointError(f"exporting to {target}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return replace(merged, path=str(target))


def launch_model(name: str, output: Path) -> str | None:
    """Folder for a launcher's MODEL_PATH that names a run or a checkpoint; None when it is a plain model.

    Args:
        name: as in `naming.resolve`.
        output: the launch's OUTPUT_DIR.

    Raises:
        CheckpointError: it names a run or checkpoint that cannot be used.
    """
    path = Path(name).expanduser()
    if path.is_dir() and place.has_weights(path):
        return None
    alias = name.partition(":")[0] in naming.ALIASES
    if not (path.is_dir() or alias or naming.names_run(name, output)):
        return None
    if path.is_dir() and not place.looks_like_checkpoint(path):
        return None
    return merge(naming.resolve(name, output=output)).path
