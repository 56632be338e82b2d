"""Shards by verl's manager -> a model that answers exactly as the trained one did; LoRA never silently lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.checkpoints import CheckpointError, export, housekeeping, merge, resolve

pytestmark = pytest.mark.slow


def logits(folder: str | Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.inference_mode():
        return model(torch.arange(8).unsqueeze(0)).logits


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_merged_model_answers_as_the_trained_one(
    output: Path, add_run: Callable[..., Path], shards: Path, base: Path, kind: str
) -> None:
    import torch

    add_run("grpo/run", {1: shards / kind}, command=("engine.rollout.dtype=float32",))
    merged = merge(resolve("run", output=output))
    assert (merged.dtype, merged.dtype_from) == ("float32", "the run")
    expected = torch.load(shards / f"{kind}.logits.pt")
    torch.testing.assert_close(logits(merged.path), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, logits(base), atol=1e-2)
    assert json.loads((Path(merged.path) / "config.json").read_text())["dtype"] == "float32"
    assert (Path(merged.path) / "chat_template.jinja").is_file()


def test_merge_is_done_once_and_again_when_the_shards_change(
    output: Path, add_run: Callable[..., Path], shards: Path, capfd: pytest.CaptureFixture
) -> None:
    root = add_run("grpo/run", {1: shards / "full"})
    first = merge(resolve("run", output=output))
    stamp = (Path(first.path) / "model.safetensors").stat().st_mtime_ns
    assert "merging grpo/run step 1 once" in capfd.readouterr().err
    again = merge(resolve("run", output=output))
    assert again.path == first.path and capfd.readouterr().err == ""
    assert (Path(first.path) / "model.safetensors").stat().st_mtime_ns == stamp
    (root / "global_step_1/actor/model_world_size_2_rank_0.pt").touch()
    assert merge(resolve("run", output=output)).path != first.path


def test_precision_is_the_config_file_s_without_a_run(
    output: Path, shards: Path, base: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(shards / "full", tmp_path / "global_step_1")
    config = json.loads((place / "huggingface/config.json").read_text())
    (place / "huggingface/config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    merged = merge(resolve(str(place)))
    assert (merged.dtype, merged.dtype_from) == ("bfloat16", "config.json")
    assert str(logits(merged.path).dtype) == "torch.bfloat16"
    assert merge(resolve(str(place)), dtype="float32").path != merged.path


def test_lora_without_alpha_or_effect_or_base_is_refused(
    output: Path, add_run: Callable[..., Path], shards: Path, base: Path, tmp_path: Path
) -> None:
    root = add_run("grpo/run", {1: shards / "lora"})
    meta = root / "global_step_1/actor/lora_train_meta.json"
    meta.write_text('{"r": 4, "lora_alpha": 0}')
    with pytest.raises(CheckpointError, match=r"lora_alpha is 0 or not recorded.*--lora_alpha"):
        merge(resolve("run", output=output))
    assert merge(resolve("run", output=output), lora_alpha=16).info["lora_norm"] > 0
    meta.unlink()
    with pytest.raises(CheckpointError, match=r"holds LoRA weights but no lora_train_meta.json"):
        merge(resolve("run", output=output))
    loose = shutil.copytree(shards / "lora", tmp_path / "loose")
    with pytest.raises(CheckpointError, match="base model is not recorded; give --base_model"):
        merge(resolve(str(loose)))
    assert merge(resolve(str(loose), base=str(base))).info["lora_modules"] == 4


def test_peft_adapter_folder(output: Path, base: Path, tmp_path: Path) -> None:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(r=2, lora_alpha=4, target_modules=["v_proj"]),
    )
    model.save_pretrained(tmp_path / "zero")
    with pytest.raises(CheckpointError, match="all zeros: the model would be exactly its base"):
        merge(resolve(str(tmp_path / "zero")))
    same = merge(resolve(str(tmp_path / "zero")), unchanged=True)
    torch.testing.assert_close(logits(same.path), logits(str(base)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    model.save_pretrained(tmp_path / "adapter")
    merged = merge(resolve(str(tmp_path / "adapter")))
    torch.testing.assert_close(
        logits(merged.path), model(torch.arange(8).unsqueeze(0)).logits.detach(), atol=1e-4, rtol=1e-4
    )
    config = tmp_path / "adapter/adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 0}))
    with pytest.raises(CheckpointError, match="lora_alpha is 0"):
        merge(resolve(str(tmp_path / "adapter")))


def test_damaged_shards_and_a_full_disk_leave_nothing_behind(
    output: Path, add_run: Callable[..., Path], shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = add_run("grpo/run", {1: shards / "full"})
    shard = root / "global_step_1/actor/model_world_size_2_rank_1.pt"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"rank_1.pt cannot be read .*the save was cut short"):
        merge(resolve("run", output=output))
    shard.write_bytes(whole)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(CheckpointError, match=r"GiB .* are free: make room.*VERL_TRAINING_CACHE"):
        merge(resolve("run", output=output))
    assert list((output.parent / "cache/merged").iterdir()) == []


def test_export_verify_list_and_prune(
    output: Path, add_run: Callable[..., Path], shards: Path, base: Path, tmp_path: Path
) -> None:
    lora = add_run("grpo/lora", {1: shards / "lora"}, command=("a.rollout.dtype=float32",))
    facts = housekeeping.verify(resolve("lora", output=output))
    assert facts["logits_from_base"] > 0.1 and facts["chat_template"]
    target = tmp_path / "served"
    assert export(resolve("lora", output=output), target).path == str(target)
    shutil.rmtree(lora)
    assert logits(target).shape == (1, 8, facts["tokenizer"])
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        export(resolve(str(base)), target)
    assert [path.name.split("-")[0] for path in housekeeping.stale_merges()] == ["grpo"]

    add_run("sft/long", dict.fromkeys((5, 10, 15, 20), base), scores={5: 0.9, 10: 0.2}, sub="")
    assert [(e.step, e.score, e.marks) for e in housekeeping.entries(output, "long")] == [
        (5, 0.9, ("best",)),
        (10, 0.2, ()),
        (15, None, ()),
        (20, None, ("last",)),
    ]
    assert [entry.step for entry in housekeeping.prune(output, "long", 1)] == [10, 15]
    assert [entry.step for entry in housekeeping.prune(output, "long", 2, keep_best=False)] == [5, 10]


def test_diverged_weights_fail_verification(output: Path, base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(base, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model.norm.weight holds NaN or infinity"):
        housekeeping.verify(resolve(str(broken)))
