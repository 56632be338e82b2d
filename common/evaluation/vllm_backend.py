"""vLLM: all requests at once, each handed on when it is finished, so that a kill loses nothing that was done."""

from __future__ import annotations

import gc
import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.checkpoints import Merged
from common.evaluation import device
from common.evaluation.backends import VLLM_BATCH, Answer, Request, Sampling, budget, too_long
from common.launcher.errors import UserError


class VllmBackend:
    """An engine and its tokenizer.

    Raises:
        UserError: vLLM cannot be imported, or refuses the model; with its own reason.
    """

    name = "vllm"

    def __init__(self, model: Merged, options: Namespace, longest: int) -> None:
        on_cpu = device.kind() == "cpu"
        try:
            from vllm import LLM

            arguments: dict[str, Any] = {
                "model": model.path,
                "dtype": model.dtype,
                "tensor_parallel_size": options.tp,
                "seed": options.seed,
                "max_num_seqs": options.batch_size or VLLM_BATCH,
                "enforce_eager": options.enforce_eager or on_cpu,
                # Sampling is ours to set: no defaults of the model's generation_config.json.
                "generation_config": "vllm",
                "disable_log_stats": True,
            }
            if not on_cpu:
                arguments["gpu_memory_utilization"] = options.gpu_memory_utilization
            if length := _length(model, options, longest):
                arguments["max_model_len"] = length
            self.llm = LLM(**arguments)
        except Exception as error:  # import, CUDA, memory, config: many types, one meaning
            raise UserError(
                f"vLLM cannot be used: {_reason(error)}; mend that, or leave --use_vllm out for transformers"
            ) from None
        self.engine = self.llm.llm_engine
        self.tokenizer = self.llm.get_tokenizer()
        self.context = int(self.engine.model_config.max_model_len)
        self.generation_config = _generation_config(model.path)
        self._number = 0

    def _params(self, sampling: Sampling, stops: list[int], tokens: int, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=tokens,
            stop_token_ids=stops,
            seed=seed,
        )

    def generate(self, requests: Sequence[Request], sampling: Sampling, stops: list[int]) -> Iterator[Answer]:
        """Answers as they finish (`LLM.generate` would give them only when all are done).

        Upstream: the loop of `vllm.entrypoints.offline_utils._run_engine` (0.24.0).
        """
        from vllm.sampling_params import RequestOutputKind

        waiting: dict[str, Request] = {}
        for request in requests:
            room = budget(request, sampling, self.context)
            if not room:
                yield too_long(request, self.context)
                continue
            params = self._params(sampling, stops, room, request.seed(sampling.seed))
            params.output_kind = RequestOutputKind.FINAL_ONLY
            params.detokenize = False
            self._number += 1
            try:
                self.engine.add_request(str(self._number), {"prompt_token_ids": request.ids}, params)
            except ValueError as error:
                yield Answer(request.item, request.sample, "", "error", 0, _reason(error))
                continue
            waiting[str(self._number)] = request
        try:
            while self.engine.has_unfinished_requests():
                for output in self.engine.step():
                    if output.finished:
                        request = waiting.pop(_own_id(output.request_id, waiting))
                        done: Any = output.outputs[0]  # type: ignore[index]
                        finish = "length" if done.finish_reason == "length" else "stop"
                        # Decoded as a whole, as verl does: vLLM's stepwise text drops an unfinished last character.
                        tokens = list(done.token_ids)
                        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
                        yield Answer(request.item, request.sample, text, finish, len(tokens))
        except (GeneratorExit, KeyboardInterrupt):
            self.engine.abort_request(list(waiting))
            raise
        except Exception as error:  # a dead engine has many types
            raise UserError(
                f"vLLM stopped: {_reason(error)}; finished answers are kept, the same command goes on from there"
            ) from None

    def stream(self, ids: list[int], sampling: Sampling, stops: list[int]) -> Iterator[str]:
        """One answer as it grows; leaving early ends it."""
        from vllm.sampling_params import RequestOutputKind

        self._number += 1
        name = str(self._number)
        tokens = budget(Request(0, 0, ids), sampling, self.context)
        params = self._params(sampling, stops, max(1, tokens), sampling.seed + self._number)
        params.output_kind = RequestOutputKind.DELTA
        self.engine.add_request(name, {"prompt_token_ids": ids}, params)
        try:
            while self.engine.has_unfinished_requests():
                for output in self.engine.step():
                    yield output.outputs[0].text  # type: ignore[index]
        finally:
            self.engine.abort_request([name])

    def close(self) -> None:
        """End the engine's processes."""
        self.engine.engine_core.shutdown()
        del self.llm, self.engine
        gc.collect()


def _own_id(found: str, waiting: dict[str, Request]) -> str:
    """vLLM hands a request's id back as given, or with a suffix of its own."""
    return found if found in waiting else found.partition("-")[0]


def _length(model: Merged, options: Namespace, longest: int) -> int:
    """max_model_len: as asked for, else what the data needs; never more than the model reads. 0 = vLLM's own."""
    wanted = options.max_model_len or longest
    if not wanted or options.max_model_len:
        return wanted
    config = Path(model.path) / "config.json"
    if not config.is_file():
        return 0
    limit = json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings")
    return min(wanted, int(limit)) if limit else 0


def _generation_config(path: str) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:  # a model without one
        return None


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}"[:600] if lines else type(error).__name__
