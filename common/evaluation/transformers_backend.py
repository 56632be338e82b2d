"""transformers: prompts of like length together, left padding, rows that have ended leave the batch."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any

from common.checkpoints import Merged
from common.evaluation import device
from common.evaluation.backends import TRANSFORMERS_BATCH, Answer, Request, Sampling, budget, too_long
from common.launcher.errors import UserError


class TransformersBackend:
    """A model and its tokenizer on one device.

    Raises:
        UserError: it does not load.
    """

    name = "transformers"

    def __init__(self, model: Merged, options: Namespace) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.device = "cuda" if device.kind() == "gpu" else "cpu"
        load: Any = AutoModelForCausalLM.from_pretrained
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model.path)
            self.model, report = load(model.path, dtype=model.dtype, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{model.path} does not load in transformers: {reason}") from None
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise UserError(f"{model.path} lacks weights ({missing} ...): they would be random")
        self.model.to(self.device).eval()
        self.batch_size = options.batch_size or TRANSFORMERS_BATCH
        config = self.model.config.get_text_config()
        limit = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
        self.context = min(limit, options.max_model_len or limit)
        self.generation_config = self.model.generation_config
        self.torch: Any = torch

    def generate(self, requests: Sequence[Request], sampling: Sampling, stops: list[int]) -> Iterator[Answer]:
        """Answers as they finish, longest prompts first (what does not fit in memory shows at once)."""
        fitting = []
        for request in requests:
            if budget(request, sampling, self.context):
                fitting.append(request)
            else:
                yield too_long(request, self.context)
        fitting.sort(key=lambda request: (-len(request.ids), request.item, request.sample))
        size = self.batch_size
        while fitting:
            done: set[tuple[int, int]] = set()
            try:
                for answer in self._batch(fitting[:size], sampling, stops):
                    done.add((answer.item, answer.sample))
                    yield answer
            except self.torch.OutOfMemoryError:
                if size == 1:
                    raise UserError("one prompt alone runs out of memory: lower --max_new_tokens") from None
                size = max(1, size // 2)
                print(f"note: out of memory, going on with {size} prompts at once", file=sys.stderr)
            fitting = [request for request in fitting if (request.item, request.sample) not in done]

    def _batch(self, batch: list[Request], sampling: Sampling, stops: list[int]) -> Iterator[Answer]:
        from common.evaluation.decoding import decode_batch

        budgets = [budget(request, sampling, self.context) for request in batch]
        seeds = [request.seed(sampling.seed) for request in batch]
        pad = next(token for token in (self.tokenizer.pad_token_id, *stops, 0) if token is not None)
        ids = [request.ids for request in batch]
        for row, tokens, stopped in decode_batch(self.model, ids, budgets, seeds, sampling, stops, pad):
            text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
            finish = "stop" if stopped else "length"
            yield Answer(batch[row].item, batch[row].sample, text, finish, len(tokens))

    def stream(self, ids: list[int], sampling: Sampling, stops: list[int]) -> Iterator[str]:
        """One answer as it grows, a piece per complete character."""
        from common.evaluation.decoding import decode_stream

        tokens: list[int] = []
        shown = ""
        room = max(1, budget(Request(0, 0, ids), sampling, self.context))
        for token in decode_stream(self.model, ids, room, sampling, stops):
            tokens.append(token)
            text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
            if text.endswith("\ufffd"):  # in the middle of a character
                continue
            yield text[len(shown) :]
            shown = text

    def close(self) -> None:
        """Free the memory."""
        del self.model
