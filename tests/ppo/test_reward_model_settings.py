"""reward_model_config.yaml and the reward model's folder: what becomes verl's keys, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.launcher.errors import UserError
from ppo.reward_model import load_settings, plan

KNOBS = {
    "DEVICE": "gpu",
    "N_GPUS": "8",
    "NNODES": "2",
    "MAX_PROMPT_LENGTH": "512",
    "MAX_RESPONSE_LENGTH": "1024",
}


def model_folder(
    folder: Path, architecture: str = "LlamaForSequenceClassification", template: bool = True, **config: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"architectures": [architecture], "num_labels": 1, **config})
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ x }}"} if template else {})
    )
    return folder


def planned(tmp_path: Path, keys: dict[str, Any], knobs: dict[str, str] | None = None, **model: Any) -> Any:
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(keys))
    folder = model_folder(tmp_path / "model", **model)
    return plan(load_settings(path), str(folder), path, {**KNOBS, **(knobs or {})})


def keys_of(*arguments: Any, **model: Any) -> dict[str, str]:
    found = planned(*arguments, **model)
    assert found.served
    return dict(word.removeprefix("+").split("=", 1) for word in found.keys)


def test_default_file_shares_the_training_gpus(tmp_path: Path) -> None:
    shipped = yaml.safe_load(
        (Path(__file__).resolve().parents[2] / "ppo/reward_model_config.yaml").read_text()
    )
    assert keys_of(tmp_path, shipped) == keys_of(tmp_path, {})
    keys, rollout = keys_of(tmp_path, {}), "reward.reward_model.rollout"
    assert keys["reward.reward_model.enable"] == "True"
    assert keys["reward.reward_model.enable_resource_pool"] == "False"
    assert keys["reward.reward_model.model_path"] == f'"{tmp_path}/model"'
    assert (keys[f"{rollout}.name"], keys[f"{rollout}.tensor_model_parallel_size"]) == ("vllm", "1")
    assert (keys[f"{rollout}.max_model_len"], keys[f"{rollout}.response_length"]) == ("2048", "1")


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"max_length": 4096}, {"rollout.max_model_len": "4096", "rollout.prompt_length": "4096"}),
        ({"dtype": "float16"}, {"rollout.dtype": "float16"}),
        ({"server": {"engine": "sglang"}}, {"rollout.name": "sglang"}),
        ({"server": {"tensor_parallel": 4}}, {"rollout.tensor_model_parallel_size": "4"}),
        ({"server": {"gpu_memory_utilization": 0.7}}, {"rollout.gpu_memory_utilization": "0.7"}),
        (
            {"server": {"gpus": 2, "nodes": 3}},
            {"enable_resource_pool": "True", "n_gpus_per_node": "2", "nnodes": "3"},
        ),
    ],
)
def test_every_key_of_the_server_reaches_verl(
    tmp_path: Path, settings: dict[str, Any], changed: dict[str, str]
) -> None:
    before, after = keys_of(tmp_path, {}), keys_of(tmp_path, settings)
    difference = {key: value for key, value in after.items() if before.get(key) != value}
    assert difference == {f"reward.reward_model.{key}": value for key, value in changed.items()}


def test_a_writer_gets_room_for_its_grade(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, {"judge": {"max_tokens": 100}}, architecture="LlamaForCausalLM")
    assert keys["reward.reward_model.rollout.max_model_len"] == "2148"
    assert keys["reward.reward_model.rollout.response_length"] == "100"


def test_on_the_cpu_the_worker_scores_unless_a_server_is_asked_for(tmp_path: Path) -> None:
    assert not planned(tmp_path, {}, {"DEVICE": "cpu"}).served
    assert not planned(tmp_path, {"serve": "process"}).served
    served = keys_of(tmp_path, {"serve": "server"}, {"DEVICE": "cpu"})
    assert served["reward.reward_model.rollout.dtype"] == "float32"
    own = keys_of(
        tmp_path, {"serve": "server", "server": {"gpus": 1}}, {"DEVICE": "cpu", "N_GPUS": "1", "NNODES": "1"}
    )
    assert own["ray_kwargs.ray_init.num_gpus"] == "2"


BAD = [
    ({"kinds": "auto"}, {}, "has no key 'kinds', did you mean 'kind'?"),
    ({"kind": "regression"}, {}, "kind: 'regression' is not one of auto, discriminative, generative"),
    ({"scale": [3, 1]}, {}, "scale: [3, 1] must be [low, high]"),
    ({"max_length": 0}, {}, "max_length: 0 is not a whole number"),
    ({"max_length": 100}, {}, "max_length: 100 is below MAX_PROMPT_LENGTH + MAX_RESPONSE_LENGTH = 1536"),
    ({"server": {"gpu_memory_utilization": 30}}, {}, "must lie between 0 and 1"),
    ({"server": {"gpu": 1}}, {}, "has no key 'gpu', did you mean 'gpus'?"),
    ({"server": {"tensor_parallel": 3}}, {}, "tensor_parallel: 3 does not divide its 16 GPUs"),
    ({"judge": {"base_url": "http://x"}}, {}, "judge has no 'base_url'"),
    ({"judge": {"preset": "qualty"}}, {}, "preset 'qualty' does not exist, did you mean 'quality'?"),
    ({"judge": {"on_failure": "drop"}}, {}, "drop is for an API judge"),
    ({}, {"template": False}, "has no chat template"),
    (
        {"kind": "discriminative"},
        {"architecture": "LlamaForCausalLM"},
        "is a LlamaForCausalLM: kind: discriminative",
    ),
    ({"kind": "generative"}, {}, "scores and does not write"),
    ({}, {"num_labels": 3}, "with 3 labels: a reward needs one label, or two"),
    ({}, {"architecture": "BertForMaskedLM"}, "is a BertForMaskedLM: a reward model is"),
    ({"output": "margin"}, {}, "with one label: output: margin needs two"),
]


@pytest.mark.parametrize(("settings", "model", "message"), BAD)
def test_what_cannot_work_is_refused_in_one_line(
    tmp_path: Path, settings: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        planned(tmp_path, settings, **model)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_id2label_counts_labels_too(tmp_path: Path) -> None:
    names = {str(number): f"LABEL_{number}" for number in range(5)}
    with pytest.raises(UserError, match="with 5 labels"):
        planned(tmp_path, {}, num_labels=None, id2label=names)
