"""The transformers path against `generate()`; an answer never depends on its neighbours in the batch."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from common.checkpoints import merge, resolve
from common.evaluation.backends import Answer, Request, Sampling
from common.evaluation.decoding import _draw
from common.evaluation.transformers_backend import TransformersBackend
from common.launcher.errors import UserError

PROMPTS = [list(range(5, 5 + n)) for n in (3, 17, 9, 40, 4, 11)]


@pytest.fixture(scope="module")
def backend(model: Path) -> TransformersBackend:
    return load(model, batch_size=4)


def load(model: Path, batch_size: int, max_model_len: int = 0) -> TransformersBackend:
    return TransformersBackend(
        merge(resolve(str(model))), Namespace(batch_size=batch_size, max_model_len=max_model_len)
    )


def answers(
    backend: TransformersBackend, sampling: Sampling, stops: list[int], prompts=PROMPTS
) -> dict[int, Answer]:
    requests = [Request(item, 0, ids) for item, ids in enumerate(prompts)]
    return {answer.item: answer for answer in backend.generate(requests, sampling, stops)}


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_batches_equal_generate_one_by_one(backend: TransformersBackend, penalty: float) -> None:
    import torch

    stops = [7, 40, 90, 120, 200]
    found = answers(backend, Sampling(temperature=0, max_new_tokens=24, repetition_penalty=penalty), stops)
    ends = set()
    for item, ids in enumerate(PROMPTS):
        whole = backend.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=24,
            repetition_penalty=penalty,
            eos_token_id=stops,
            pad_token_id=0,
        )[0, len(ids) :].tolist()
        assert found[item].tokens == len(whole)
        assert found[item].text == backend.tokenizer.decode(whole, skip_special_tokens=True)
        assert found[item].finish == ("stop" if whole[-1] in stops else "length")
        ends.add(found[item].finish)
    if penalty == 1.3:
        assert ends == {"stop", "length"}


def test_samples_do_not_depend_on_batch_or_order(backend: TransformersBackend, model: Path) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.9, top_k=50, max_new_tokens=8, seed=3)
    together = answers(backend, sampling, [7])
    alone = {
        item: next(backend.generate([Request(item, 0, ids)], sampling, [7]))
        for item, ids in enumerate(PROMPTS)
    }
    assert together == alone
    other = next(backend.generate([Request(0, 1, PROMPTS[0])], sampling, [7]))
    assert other.text != alone[0].text


def test_top_k_and_top_p_leave_only_the_likely_tokens() -> None:
    import torch

    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(400, 1)
    draws = [torch.Generator().manual_seed(i) for i in range(400)]

    def drawn(**values: float) -> set[int]:
        return set(_draw(logits.clone(), Sampling(**{"temperature": 1.0, **values}), draws, None).tolist())

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.75) == {0, 1}
    assert drawn(top_p=0.4) == {0}
    assert drawn(temperature=0) == {0}


def test_stream_gives_the_same_text_in_pieces(backend: TransformersBackend) -> None:
    sampling = Sampling(temperature=0, max_new_tokens=12)
    pieces = list(backend.stream(PROMPTS[1], sampling, []))
    whole = answers(backend, sampling, [], PROMPTS[1:2])[0].text
    assert whole.startswith("".join(pieces)) and len(pieces) > 3


def test_a_prompt_without_room_is_an_error_and_budgets_shrink_to_the_context(model: Path) -> None:
    small = load(model, batch_size=4, max_model_len=20)
    found = answers(small, Sampling(temperature=0, max_new_tokens=8), [])
    assert found[3].finish == "error" and "the prompt has 40 tokens, the context 20" in found[3].error
    assert (found[1].tokens, found[1].finish) == (3, "length")
    assert found[0].tokens == 8


def test_running_out_of_memory_halves_the_batch_and_repeats_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import torch

    fresh = load(model, batch_size=4)
    sizes: list[int] = []
    original = fresh.model.forward

    def forward(*args: object, input_ids: torch.Tensor, **kwargs: object) -> object:
        if input_ids.shape[1] > 1:
            sizes.append(input_ids.shape[0])
            if input_ids.shape[0] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(fresh.model, "forward", forward)
    found = answers(fresh, Sampling(temperature=0, max_new_tokens=4), [])
    assert sorted(found) == list(range(6)) and sizes == [4, 2, 2, 2]
    assert "going on with 2 prompts at once" in capsys.readouterr().err


def test_a_model_that_lacks_weights_is_refused(model: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(model, tmp_path / "torn")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights \(model.norm.weight"):
        load(folder, 1)
