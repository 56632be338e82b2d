"""The models of a run by their files alone: would transformers and verl load them, some minutes later?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.preflight.finding import Finding, error
from common.preflight.job import Job

# The smallest file that holds a tensor is larger; a pointer of git-lfs has about 130 bytes.
_LEAST = 200
_ANSWERS = re.compile(r"CausalLM|LMHeadModel|ForConditionalGeneration|ForVision2Seq|ForImageTextToText")


def check(job: Job) -> Iterator[Finding]:
    """Policy, reference, critic and reward model, and the adapter that training starts from."""
    key = f"{job.model_key}.path"
    yield from _folder(job.model, job.name(key), job.name(key), writes=True)
    if job.needs_critic:
        critic = "critic.model.path"
        yield from _folder(str(job.get(critic, "")), job.name(critic), "CRITIC_MODEL_PATH")
    if job.get("reward.reward_model.enable"):
        reward = "reward.reward_model.model_path"
        yield from _folder(str(job.get(reward, "")), reward, "REWARD_MODEL_PATH")
    yield from _folder(str(job.get("dpo.reference_path", "")), "dpo.reference_path", "REF_MODEL_PATH")
    yield from _adapter(job, f"{job.model_key}.lora_adapter_path")


def _local(path: str) -> Path | None:
    """The folder that *path* names; None for a hub id, which is fetched."""
    return Path(path).expanduser() if path.startswith(("/", "~", ".")) or Path(path).is_dir() else None


def _folder(path: str, name: str, knob: str, writes: bool = False) -> Iterator[Finding]:
    folder = _local(path) if path else None
    if folder is None:
        return
    where = f"{name}={path}"
    if not (folder / "config.json").is_file():
        yield error(f"{where} holds no model (no config.json): give a Hugging Face model folder", knob)
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        yield error(f"{where}: its config.json is no JSON object: download the model anew", knob)
        return
    yield from _kind(config, where, knob, writes)
    problem = weights_problem(folder)
    if problem:
        yield error(f"{where}: {problem}", knob)


def _kind(config: dict[str, Any], where: str, knob: str, writes: bool) -> Iterator[Finding]:
    """A loadable architecture, and for the policy one that writes."""
    kinds = config.get("architectures")
    if not isinstance(kinds, list) or len(kinds) != 1:
        listed = kinds if isinstance(kinds, list) else []
        yield error(
            f"{where}: config.json names {len(listed)} architectures ({', '.join(map(str, listed)) or 'none'}), "
            "verl asserts that there is one",
            knob,
        )
        return
    if config.get("auto_map"):  # code of its own decides
        return
    kind, known = config.get("model_type"), model_types()
    if known and isinstance(kind, str) and kind not in known:
        yield error(
            f"{where}: config.json's model_type={kind} is none that the installed transformers knows: take another "
            "model, or a newer transformers",
            knob,
        )
    if writes and not _ANSWERS.search(str(kinds[0])):
        yield error(
            f"{where} is a {kinds[0]}, which writes no answers: give a ...ForCausalLM or "
            "...ForConditionalGeneration (a reward model goes to REWARD_MODEL_PATH)",
            knob,
        )


@cache
def model_types() -> frozenset[str]:
    """Every ``model_type`` of the installed transformers, read from its source: importing it takes seconds."""
    spec = find_spec("transformers")
    if spec is None or not spec.origin:
        return frozenset()
    found: set[str] = set()
    for path in (Path(spec.origin).parent / "models" / "auto").glob("*auto*.py"):
        pairs = re.findall(r'"([\w.+-]+)"(?:, |: ?)"\w+Config"', path.read_text(encoding="utf-8"))
        found.update(pairs)
    return frozenset(found)


def weights_problem(folder: Path) -> str:
    """Why the weights of *folder* cannot be loaded, "" when they can, by names and sizes."""
    files = [path for path in _weight_files(folder) if path.is_file()]
    if not files and not (folder / "model.safetensors.index.json").is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        return f"it holds no weights, no *.safetensors or *.bin (found: {found}): download it whole"
    return _missing_shards(folder) or _small(files)


def _weight_files(folder: Path) -> list[Path]:
    found = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return sorted(path for path in found if path.name != "training_args.bin")


def _missing_shards(folder: Path) -> str:
    for kind in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{kind}.index.json"
        if (folder / kind).is_file():
            return ""  # transformers looks for the whole file first
        if not index.is_file():
            continue
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name} is no index of weights: download the model anew"
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            return (
                f"{len(missing)} of {len(shards)} weight files in {index.name} are missing ({', '.join(missing[:3])}"
                f"{', ...' if len(missing) > 3 else ''}): download it whole"
            )
        return ""
    return ""


def _small(files: list[Path]) -> str:
    for path in files:
        size = path.stat().st_size
        if size < _LEAST:
            pointer = path.read_bytes().startswith(b"version https://git-lfs")
            advice = "a pointer of git-lfs: run git lfs pull there" if pointer else "download it anew"
            return f"{path.name} has {size} bytes, no weights: {advice}"
    return ""


def _adapter(job: Job, key: str) -> Iterator[Finding]:
    path = str(job.get(key, ""))
    folder = _local(path) if path else None
    if folder is None:
        return
    knob = "LORA_ADAPTER_PATH" if job.command.task == "preference" else key
    if not (folder / "adapter_config.json").is_file():
        yield error(f"{key}={path} holds no adapter_config.json: give a PEFT adapter folder", knob)
        return
    files = [path for path in _weight_files(folder) if path.name.startswith("adapter_model")]
    problem = _small(files) if files else "it holds no adapter_model.safetensors: download it whole"
    if problem:
        yield error(f"{key}={path}: {problem}", knob)
