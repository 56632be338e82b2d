"""Wrong configurations, each stopped with the sentence that mends it: on the resolved config, by key=value.

Knobs that a flag spoils are in tests/launcher/test_bad_input.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.check_env.gpu import Gpu
from common.cpu.model import ensure_bundled_model
from common.launcher.errors import UserError
from common.preflight.composing import base_of, compose, word_problem
from common.preflight.report import Report

from .cases import CPU, GPU, NOT_COMPOSED, RM, VERL_SAYS, WRONG, A, R
from .conftest import CPU_BOX, GPU_BOX, ON_A_CLUSTER, base_command


def stopped(report: Report, part: str) -> None:
    """One of the errors says *part*."""
    errors = [finding.text for finding in report.findings if finding.severity == "error"]
    assert any(part in text for text in errors), errors


@pytest.mark.parametrize(
    ("method", "word", "part"), NOT_COMPOSED, ids=[f"{m} {w}" for m, w, _ in NOT_COMPOSED]
)
def test_hydra_refuses_in_one_line(method: str, word: str, part: str) -> None:
    (line,) = word_problem(word, base_of(base_command(method, *CPU)))
    assert part in line


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("data.train_batchsize=4", "did you mean data.train_batch_size?"),
        ("data.train_files=${nope.y}", "Interpolation key 'nope.y' not found"),
        ("model_engine=nope", "Could not find 'model_engine/nope'"),
    ],
)
def test_a_config_that_cannot_be_composed(word: str, part: str) -> None:
    command = base_command("grpo", *CPU)
    with pytest.raises(UserError) as refused:
        compose(replace(command, overrides=[*command.overrides, word]))
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("method", "flags", "words", "part"), WRONG, ids=[f"{m} {' '.join(w)} {p[:20]}" for m, _, w, p in WRONG]
)
def test_wrong_values_are_stopped(
    examined: Callable[..., Report], method: str, flags: tuple[str, ...], words: list[str], part: str
) -> None:
    stopped(examined(method, flags, words), part)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "flags", "words", "part"), VERL_SAYS, ids=[f"{m} {' '.join(w)}" for m, _, w, _ in VERL_SAYS]
)
def test_what_verl_refuses_is_stopped(
    examined: Callable[..., Report], method: str, flags: tuple[str, ...], words: list[str], part: str
) -> None:
    stopped(examined(method, flags, words, ask=True), part)


BUSY = [replace(GPU_BOX.gpus[0], memory_free=9000), *GPU_BOX.gpus[1:]]
SMALL = [Gpu("0", "a small one", 4096, 4000, 7.5)]
ONE_GPU = ("--device", "gpu", "--gpus", "1")
HERE = {
    "fewer GPUs": (
        GPU,
        [],
        {"gpus": GPU_BOX.gpus[:4]},
        "N_GPUS=8, but this machine shows 4 GPUs: use N_GPUS=4",
    )
}
HERE |= {
    "a busy GPU": (
        GPU,
        [],
        {"gpus": BUSY},
        "GPU 0 has 8.8 of 79.6 GiB free, the rollout engine asks for 0.5 x 79.6",
    ),
    "no flash-attn": (
        GPU,
        [],
        {"importable": lambda name: name != "flash_attn"},
        "flash-attn is not installed",
    ),
    "no TransferQueue": (
        CPU,
        [],
        {"importable": lambda name: name != "transfer_queue"},
        "TransferQueue, on which",
    ),
    "no sglang": (
        (*GPU, "--rollout_engine", "sglang"),
        [],
        {"importable": lambda name: name != "sglang"},
        "sglang is not installed",
    ),
    "no swanlab": (
        (*CPU, "--loggers", "swanlab"),
        [],
        {"importable": lambda name: name != "swanlab"},
        "pip install swanlab",
    ),
    "small /dev/shm": (CPU, [], {"shm_free": 64 << 20}, "/dev/shm has 0.06 GiB"),
    "few cores": (GPU, ["ray_kwargs.ray_init.num_cpus=null"], {"cores": 16}, "Ray would have 16 CPUs"),
    "full disk": (
        GPU,
        [],
        {"disk_free": lambda path: 3 << 30},
        "up to 3 checkpoints of 2.0 GiB = 6.0 GiB are kept, /",
    ),
    "small host": (CPU, [], {"ram_total": 4 << 30, "ram_free": 3 << 30}, "this machine has 4.0 GiB"),
    "small GPU": (
        (*ONE_GPU, "--max_tokens_per_gpu", "60000", "--max_response_length", "7000"),
        [],
        {"gpus": SMALL},
        "a GPU has 4.0 GiB",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
def test_a_machine_that_cannot(examined: Callable[..., Report], name: str) -> None:
    flags, words, there, part = HERE[name]
    stopped(examined("grpo", flags, words, replace(CPU_BOX if "cpu" in flags else GPU_BOX, **there)), part)


@pytest.mark.slow
def test_a_taken_port(examined: Callable[..., Report]) -> None:
    flags = (*GPU, "--nnodes", "2", "--master_addr", "10.0.0.1", "--master_port", "29511")
    taken = replace(GPU_BOX, port_free=lambda port: port != 29511)
    stopped(examined("sft", flags, [], taken), "MASTER_PORT=29511 is taken on this node")


@pytest.mark.slow
def test_a_cluster_that_is_not_there(
    examined: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.preflight import hardware

    def none(address: str) -> list[dict[str, float]]:
        raise ValueError("ConnectionError: Could not find any running Ray instance.")

    two = (*GPU, "--nnodes", "2")
    stopped(examined("grpo", two, []), "no Ray cluster answers at auto (nothing runs here)")
    monkeypatch.setattr(hardware, "cluster_nodes", none)
    stopped(examined("grpo", two, [], ON_A_CLUSTER), "no Ray cluster answers at auto (ConnectionError")
    monkeypatch.setattr(hardware, "cluster_nodes", lambda address: [{"CPU": 96.0, "GPU": 8.0}, {"CPU": 8.0}])
    stopped(examined("grpo", two, [], ON_A_CLUSTER), "has 2 nodes with 8, 0 GPUs")
    monkeypatch.setattr(hardware, "cluster_nodes", lambda address: [{"CPU": 8.0, "GPU": 8.0}] * 2)
    stopped(examined("grpo", two, [], ON_A_CLUSTER), "the Ray cluster has 16 CPUs, verl asks it for 58")


def test_a_stray_cluster_that_would_be_joined(examined: Callable[..., Report], tmp_path: Path) -> None:
    there = replace(GPU_BOX, environment={"RAY_ADDRESS": "10.0.0.9:6379"})
    stopped(examined("grpo", GPU, ["ray_kwargs.ray_init.address=null"], there), "RAY_ADDRESS=10.0.0.9:6379")


def test_data_that_verl_cannot_read(examined: Callable[..., Report], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    csv, broken, columns = (tmp_path / name for name in ("a.csv", "b.parquet", "c.parquet"))
    csv.write_text("question,answer\n")
    broken.write_text("no parquet")
    pq.write_table(pa.table({"question": ["a"] * 50, "answer": ["b"] * 50}), columns)
    for path, part in (
        (csv, "is no file that verl reads"),
        (broken, "is no Parquet file"),
        (columns, "has no column prompt or data_source"),
    ):
        stopped(examined("grpo", CPU, [f"data.train_files={path}"]), part)


def test_long_prompts_without_the_filter(examined: Callable[..., Report]) -> None:
    long = {"data": {"overlong": {"train": {"rows": 480, "over_prompt": 48, "longest_prompt": 900}}}}
    report = examined("grpo", CPU, ["data.filter_overlong_prompts=False"], record=long)
    stopped(report, "48 of 480 prompts (10%) are over MAX_PROMPT_LENGTH=64")


def test_a_model_without_a_chat_template(examined: Callable[..., Report], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    )
    (tmp_path / "tokenizer_config.json").write_text("{}")
    stopped(
        examined("grpo", CPU, [f"actor_rollout_ref.model.path={tmp_path}"]),
        "the tokenizer has no chat template",
    )


def test_models_that_verl_does_not_take(examined: Callable[..., Report], tmp_path: Path) -> None:
    key = "actor_rollout_ref.model.path"
    stopped(examined("grpo", CPU, [f"{key}={tmp_path}/none"]), "holds no model (no config.json)")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["A", "B"]}))
    stopped(examined("grpo", CPU, [f"{key}={tmp_path}"]), "names 2 architectures (A, B)")


LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
CLASSIFIER = {**LLAMA, "architectures": ["LlamaForSequenceClassification"]}
INDEX = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
UNLOADABLE = {
    "no weights": (LLAMA, {}, "holds no weights, no *.safetensors or *.bin (found: config.json)"),
    "a shard": (
        LLAMA,
        {"model.safetensors.index.json": INDEX, "one.safetensors": "w" * 999},
        "1 of 2 weight files in model.safetensors.index.json are missing (two.safetensors)",
    ),
    "no index": (
        LLAMA,
        {"model.safetensors.index.json": "{}", "one.safetensors": "w" * 999},
        "model.safetensors.index.json is no index of weights",
    ),
    "a pointer": (LLAMA, {"model.safetensors": POINTER}, "bytes, no weights: a pointer of git-lfs"),
    "an empty file": (LLAMA, {"pytorch_model.bin": ""}, "pytorch_model.bin has 0 bytes, no weights"),
    "no architecture": ({"model_type": "llama"}, {}, "names 0 architectures (none)"),
    "one as a word": ({**LLAMA, "architectures": "LlamaForCausalLM"}, {}, "names 0 architectures (none)"),
    "unknown": ({**LLAMA, "model_type": "foobar"}, {}, "model_type=foobar is none that the installed"),
    "a list": ([1, 2], {}, "its config.json is no JSON object"),
}


def model_in(folder: Path, config: object, files: dict[str, str]) -> Path:
    for name, text in {"config.json": json.dumps(config), **files}.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", UNLOADABLE)
def test_models_that_cannot_be_loaded(examined: Callable[..., Report], tmp_path: Path, name: str) -> None:
    config, files, part = UNLOADABLE[name]
    word = f"critic.model.path={model_in(tmp_path, config, files)}"
    stopped(examined("ppo", CPU, [word]), part)


def test_every_model_of_a_run_is_looked_at(examined: Callable[..., Report], tmp_path: Path) -> None:
    folder = model_in(tmp_path, CLASSIFIER, {})
    report = examined("grpo", CPU, [f"actor_rollout_ref.model.path={folder}"])
    stopped(report, "is a LlamaForSequenceClassification, which writes no answers")
    stopped(report, "holds no weights")
    stopped(examined("sft", CPU, [f"model.path={folder}"]), "holds no weights")
    stopped(examined("grpo", CPU, [*RM, f"reward.reward_model.model_path={folder}"]), "holds no weights")
    (folder / "adapter_config.json").write_text("{}")
    stopped(examined("dpo", CPU, [f"model.lora_adapter_path={folder}"]), "holds no adapter_model.safetensors")
    stopped(examined("dpo", CPU, [f"dpo.reference_path={folder}"]), "dpo.reference_path=")


KEPT = {"knobs": {"KEEP_BEST": "true"}}
UNDONE = [
    ("grpo", ["trainer.save_freq=-1"], KEPT, "so KEEP_BEST has none to keep"),
    ("grpo", ["trainer.save_freq=10", "trainer.test_freq=4"], KEPT, "test_freq=4 does not divide"),
    ("grpo", ["trainer.save_freq=10", "trainer.test_freq=-1"], KEPT, "trainer.save_freq=10; use 1"),
    ("sft", ["trainer.save_freq=10", "trainer.test_freq=4"], KEPT, "trainer.save_freq=10; use 5"),
    (
        "gspo",
        ["trainer.save_freq=-1"],
        {"knobs": {"SELF_PLAY_ROUNDS": "3"}},
        "each of the SELF_PLAY_ROUNDS=3",
    ),
]


@pytest.mark.parametrize(("method", "words", "record", "part"), UNDONE, ids=[part for *_, part in UNDONE])
def test_keys_that_undo_a_knob(
    examined: Callable[..., Report], method: str, words: list[str], record: dict[str, Any], part: str
) -> None:
    stopped(examined(method, CPU, words, record=record), part)


def test_no_validation_prompt_that_fits(examined: Callable[..., Report]) -> None:
    val = {"rows": 64, "over_prompt": 64, "longest_prompt": 90}
    report = examined("grpo", CPU, [], record={"data": {"overlong": {"train": {"rows": 480}, "val": val}}})
    stopped(report, "all 64 validation prompts are over MAX_PROMPT_LENGTH=64 tokens")


def test_a_cache_too_small_for_the_models_whole_length(
    examined: Callable[..., Report], tmp_path: Path
) -> None:
    config = json.loads((ensure_bundled_model() / "config.json").read_text())
    folder = model_in(tmp_path, {**config, "max_position_embeddings": 1 << 20}, {})
    words = [f"{R}.max_model_len=null", f"actor_rollout_ref.model.path={folder}"]
    small = replace(GPU_BOX, gpus=[Gpu(str(i), "a small one", 8192, 8000, 7.5) for i in range(8)])
    stopped(examined("grpo", GPU, words, small), f"set {R}.max_model_len=")


def test_sequence_parallel_and_key_value_heads(examined: Callable[..., Report], tmp_path: Path) -> None:
    folder = model_in(tmp_path, {**LLAMA, "num_attention_heads": 12, "num_key_value_heads": 3}, {})
    words = [f"actor_rollout_ref.model.path={folder}", f"{A}.fsdp_config.ulysses_sequence_parallel_size=4"]
    stopped(
        examined("grpo", GPU, words),
        "SEQUENCE_PARALLEL_SIZE=4 and the model's 3 key-value heads: one must divide the other; use 1",
    )


def test_wandb_without_a_login(examined: Callable[..., Report], tmp_path: Path) -> None:
    words, nobody = (
        ["trainer.logger=[console,file,wandb]"],
        {"VERL_PLATFORM": "cpu", "NETRC": str(tmp_path / "none")},
    )
    stopped(
        examined("grpo", CPU, words, replace(CPU_BOX, environment=nobody)), "wandb, but there is no login"
    )
    offline = replace(CPU_BOX, environment={**nobody, "WANDB_MODE": "offline"})
    report = examined("grpo", CPU, words, offline)
    assert not report.errors
    assert any("Weights & Biases: offline" in finding.text for finding in report.findings)


def test_force_turns_errors_into_warnings(examined: Callable[..., Any]) -> None:
    from common.preflight.finding import forced

    found = forced(examined("grpo", CPU, [f"{R}.n=1"]).findings)
    assert not [finding for finding in found if finding.severity == "error"]
    assert any(finding.text.endswith("(--force: going on)") for finding in found)
