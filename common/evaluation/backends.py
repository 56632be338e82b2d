"""What a backend gets and gives, and the two there are."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from common.checkpoints import Merged
from common.launcher.errors import UserError

TRANSFORMERS_BATCH, VLLM_BATCH = 64, 256


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; every value is set, none is left to a generation_config.json."""

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Request:
    """One answer to draw: sample number *sample* of item *item* after the prompt *ids*."""

    item: int
    sample: int
    ids: list[int]

    def seed(self, base: int) -> int:
        """The same for the same item and sample in every run and every order."""
        text = f"{base} {self.item} {self.sample}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:4], "little") >> 1


@dataclass(frozen=True)
class Answer:
    """A finished sample. `finish`: stop, length (cut by the budget) or error."""

    item: int
    sample: int
    text: str
    finish: str
    tokens: int
    error: str = ""


class Backend(Protocol):
    """A loaded model."""

    name: str
    tokenizer: Any
    context: int
    generation_config: Any

    def generate(self, requests: Sequence[Request], sampling: Sampling, stops: list[int]) -> Iterator[Answer]:
        """Answers as they finish, in any order."""

    def stream(self, ids: list[int], sampling: Sampling, stops: list[int]) -> Iterator[str]:
        """One answer in pieces of text."""

    def close(self) -> None:
        """End what the backend started."""


def budget(request: Request, sampling: Sampling, context: int) -> int:
    """Tokens that the answer may have; 0 when the prompt fills the context."""
    return max(0, min(sampling.max_new_tokens, context - len(request.ids)))


def too_long(request: Request, context: int) -> Answer:
    """The error of a prompt without room for an answer."""
    reason = f"the prompt has {len(request.ids)} tokens, the context {context}: no room for an answer"
    return Answer(request.item, request.sample, "", "error", 0, reason)


def load(model: Merged, options: Namespace, longest: int) -> Backend:
    """The backend that was asked for; never another one.

    Args:
        model: what to load.
        options: `use_vllm`, `batch_size` and what else the backends read.
        longest: tokens of the longest prompt and its answer; 0 = not known (chat).

    Raises:
        UserError: it cannot be used, and why.
    """
    if options.dtype != "auto":
        model = replace(model, dtype=_dtype(options.dtype), dtype_from="--dtype")
    if options.use_vllm:
        from common.evaluation.vllm_backend import VllmBackend

        return VllmBackend(model, options, longest)
    from common.evaluation.transformers_backend import TransformersBackend

    return TransformersBackend(model, options)


def _dtype(name: str) -> str:
    known = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "float": "float32"}
    found = known.get(name, name)
    if found not in known.values():
        raise UserError(f"--dtype {name} must be auto, bfloat16, float16 or float32")
    return found
