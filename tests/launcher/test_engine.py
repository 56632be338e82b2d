"""SFT and DPO on torchrun: processes, nodes, the batch arithmetic, and what reaches verl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from common.launcher.engine_checks import check_batches, check_nodes

from .conftest import ROOT, Launcher, executable
from .test_bad_input import refused, rows

pytestmark = pytest.mark.slow  # a minute of launches together
CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]


def sft(launch: Launcher, *flags: str, **env: str):
    return launch(*flags, method="sft", DEVICE="cpu", **env)


def torchrun(call: dict) -> list[str]:
    """torchrun's own arguments."""
    words = call["argv"]
    return words[2 : words.index("-m", 2)]


def test_default_run_on_a_machine_without_gpu(launch: Launcher) -> None:
    done = sft(launch, "--name", "first")
    assert done.code == 0, done.err
    words, keys = done.call["argv"], done.overrides
    assert words[:2] == ["-m", "torch.distributed.run"]
    assert torchrun(done.call) == ["--standalone", "--nproc_per_node", "1"]
    assert words[5:9] == ["-m", "verl.trainer.sft_trainer", "--config-path", str(ROOT / "sft")]
    assert keys["model.use_remove_padding"] == "True"
    assert keys["model.external_lib"] == "common.packed_sdpa"
    assert keys["trainer.device"] == "cpu"
    assert keys["data.custom_cls.name"] == "TokenDataset"
    assert done.call["env"]["VERL_FILE_LOGGER_PATH"].endswith("logs/sft/first/metrics-1.jsonl")
    record = launch.run_json("first", "sft")
    assert record["total_steps"] == 15
    assert record["tokens"]["TRAIN_DATA"]["samples"] == 480
    assert record["tokens"]["TRAIN_DATA"]["over"] == 0


def test_config_composes_and_reads_config_yaml(launch: Launcher) -> None:
    words = launch.dry_run(method="sft", DEVICE="cpu")
    with initialize_config_dir(str(ROOT / "sft"), version_base=None):
        config = compose("config", words[words.index("--config-name") + 2 :])
    assert config.optim.lr_scheduler_type == "cosine"
    assert config.optim.min_lr_ratio == 0.1
    assert config.data.seed == 1


def test_gpu_machine_with_and_without_flash_attn(launch: Launcher, tmp_path: Path) -> None:
    executable(launch.folder / "nvidia-smi", '#!/bin/sh\necho "GPU 0: A"\necho "GPU 1: A"\n')
    gpu = {"PATH": f"{launch.folder}:{os.environ['PATH']}"}
    done = launch("--model", "smollm2", "--name", "g", method="sft", **gpu)
    assert done.code == 0, done.err
    assert torchrun(done.call)[-2:] == ["--nproc_per_node", "2"]
    assert "trainer.device" not in done.overrides
    assert done.overrides["model.external_lib"] == "common.packed_sdpa"
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").touch()
    done = launch("--model", "smollm2", "--name", "f", method="sft", PYTHONPATH=str(tmp_path), **gpu)
    assert "model.external_lib" not in done.overrides


def test_two_processes(launch: Launcher) -> None:
    done = sft(launch, "--gpus", "2", "--name", "two")
    assert torchrun(done.call) == ["--standalone", "--nproc_per_node", "2"]


def test_a_node_of_several(launch: Launcher) -> None:
    flags = ["--nodes", "2", "--master_addr", "10.0.0.1", "--master_port", "1234", "--name", "n"]
    done = sft(launch, *flags, NODE_RANK="1")
    assert done.code == 0, done.err
    assert torchrun(done.call) == [
        *("--nnodes", "2", "--node_rank", "1", "--master_addr", "10.0.0.1"),
        *("--master_port", "1234", "--nproc_per_node", "1"),
    ]
    assert done.overrides["trainer.nnodes"] == "2"
    # Node 0 starts after node 1 did, under the same name, and has the run folder.
    first = sft(launch, *flags, "--node_rank", "0")
    assert first.code == 0, first.err
    assert [path.name for path in (launch.output / "logs/sft").glob("*/run.json")] == ["run.json"]
    assert (launch.output / "logs/sft/.nodes/n/1/run.json").is_file()


KNOBS = {
    **{"TRAIN_BATCH_SIZE": "16", "MAX_LENGTH": "512", "MAX_TOKENS_PER_GPU": "2048", "MICRO_BATCH_SIZE": "8"},
    **{
        "USE_DYNAMIC_BSZ": "true",
        "PACKING": "true",
        "SEQUENCE_PARALLEL_SIZE": "1",
        "N_GPUS": "1",
        "NNODES": "1",
    },
}
ARITHMETIC = [
    ({"TRAIN_BATCH_SIZE": "0"}, "TRAIN_BATCH_SIZE=0 must be 1 or more"),
    ({"TRAIN_BATCH_SIZE": "4096"}, "480 rows that fit, fewer than TRAIN_BATCH_SIZE=4096"),
    ({"N_GPUS": "8", "TRAIN_BATCH_SIZE": "12"}, "must divide by 8 data-parallel ranks: use 8 or 16"),
    (
        {"MAX_TOKENS_PER_GPU": "100"},
        "MAX_TOKENS_PER_GPU=100 (x 1 sequence parallel) is below MAX_LENGTH = 512",
    ),
    ({"USE_DYNAMIC_BSZ": "false", "MICRO_BATCH_SIZE": "5"}, "does not divide the 16 rows of each rank"),
    ({"SEQUENCE_PARALLEL_SIZE": "2"}, "SEQUENCE_PARALLEL_SIZE=2 does not divide 1 GPUs"),
    ({"SEQUENCE_PARALLEL_SIZE": "2", "N_GPUS": "2", "PACKING": "false"}, "needs PACKING=true"),
    ({"NNODES": "2", "EXPERIMENT_NAME": "n"}, "NNODES=2 needs MASTER_ADDR"),
    ({"NNODES": "2", "MASTER_ADDR": "h"}, "NNODES=2 needs EXPERIMENT_NAME"),
    (
        {"NNODES": "2", "MASTER_ADDR": "h", "NODE_RANK": "2"},
        "NODE_RANK=2 must be between 0 and NNODES - 1 = 1",
    ),
]


@pytest.mark.parametrize(("changed", "part"), ARITHMETIC, ids=[part[:40] for _, part in ARITHMETIC])
def test_batch_and_node_arithmetic(changed: dict[str, str], part: str) -> None:
    knobs = {**KNOBS, **changed}
    found = check_batches(knobs, "sft", 480) + check_nodes(knobs)
    assert any(part in line for line in found), found


def test_pairs_count_twice_and_right_values_pass() -> None:
    assert check_batches(KNOBS, "sft", 480) + check_nodes(KNOBS) == []
    (problem,) = check_batches({**KNOBS, "MAX_TOKENS_PER_GPU": "1000"}, "preference", 480)
    assert "2 x MAX_LENGTH (a pair stays together) = 1024: use 1024 or more" in problem


WRONG = [
    (
        ["--max_length", "60"],
        "tokens are more than MAX_LENGTH=60; raise it, or choose TRUNCATION=drop or cut",
    ),
    (
        ["data.max_length=60"],
        "data.max_length=60: rows are tokenized before verl starts, so use --max_length",
    ),
    (["--chat_template", "/no/such"], "CHAT_TEMPLATE=/no/such cannot be read"),
    (["--truncation", "left"], "TRUNCATION='left' must be one of error, drop, cut"),
    (
        ["--gpus", "2", "--batch_size", "7"],
        "TRAIN_BATCH_SIZE=7 must divide by 2 data-parallel ranks: use 6 or 8",
    ),
]


@pytest.mark.parametrize(("flags", "part"), WRONG, ids=[" ".join(flags) for flags, _ in WRONG])
def test_wrong_values(launch: Launcher, flags: list[str], part: str) -> None:
    refused(sft(launch, *flags), part)
    assert not (launch.output / "logs").exists()


BAD = {
    "no assistant turn": ([CHAT[0]], "row 2: messages: has no assistant turn to learn from"),
    "empty turn": (
        [CHAT[0], {"role": "assistant", "content": ""}],
        "row 2: messages[1]: the assistant message is empty",
    ),
    "starts with the assistant": (
        [CHAT[1], CHAT[0], CHAT[1]],
        "train row 2 ('hello'): the conversation starts with",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_rows_that_teach_nothing_are_named(launch: Launcher, tmp_path: Path, name: str) -> None:
    messages, part = BAD[name]
    data = rows(
        tmp_path / "d.jsonl", [{"messages": CHAT}] + [{"messages": messages}] + [{"messages": CHAT}] * 20
    )
    refused(sft(launch, "--train_data", data, "--val_data", data, "--batch_size", "2"), part)


def test_what_was_cut_or_left_out_is_counted_aloud(launch: Launcher, tmp_path: Path) -> None:
    def row(words: int) -> dict:
        return {"messages": [CHAT[0], {"role": "assistant", "content": "word " * words}]}

    data = rows(tmp_path / "d.jsonl", [row(n) for n in (5, 6, 100, 7, 200, 8, 9, 10)])
    flags = ["--train_data", data, "--val_data", data, "--batch_size", "2", "--max_length", "90"]
    flags += ["--epochs", "1", "--steps", "0"]
    dropped = sft(launch, *flags, "--truncation", "drop", "--name", "drop")
    assert "TRAIN_DATA: 2 of 8 rows are longer than MAX_LENGTH=90 tokens" in dropped.err
    assert "0 cut at the end, 2 left out" in dropped.err
    assert launch.run_json("drop", "sft")["total_steps"] == 3
    cut = sft(launch, *flags, "--truncation", "cut", "--name", "cut")
    assert "2 cut at the end, 0 left out" in cut.err
    assert launch.run_json("cut", "sft")["total_steps"] == 4
    assert launch.run_json("cut", "sft")["tokens"]["TRAIN_DATA"]["lost_tokens"] > 100


def test_a_chat_template_of_several_lines_arrives_unchanged(launch: Launcher, tmp_path: Path) -> None:
    template = tmp_path / "my template.jinja"
    template.write_text(
        "{% for m in messages %}\n<{{ m['role'] }}>\"${x}\" \\ {{ m.content }}\n{% endfor %}"
        '{% if add_generation_prompt %}<assistant>"${x}" \\ {% endif %}'
    )
    done = sft(launch, "--chat_template", str(template), "--name", "t")
    assert done.code == 0, done.err
    words = done.call["argv"]
    with initialize_config_dir(str(ROOT / "sft"), version_base=None):
        config = compose("config", words[words.index("--config-name") + 2 :])
    assert config.model.custom_chat_template == template.read_text()


def test_steps_beyond_the_epochs_get_the_epochs_they_need(launch: Launcher) -> None:
    assert sft(launch, "--name", "a", "--steps", "100").overrides["trainer.total_epochs"] == "4"
    assert sft(launch, "--name", "b", "--steps", "10").overrides["trainer.total_epochs"] == "3"


def test_resume_exit_code_and_summary(launch: Launcher) -> None:
    write = (
        "import json, os\n"
        "with open(os.environ['VERL_FILE_LOGGER_PATH'], 'w') as f:\n"
        "    for s in range(1, 11):\n"
        "        f.write(json.dumps({'step': s, 'data': {'train/loss': 2 - s / 10, 'val/loss': 3 - s / 10}}) + '\\n')\n"
    )
    done = sft(launch, "--name", "r", FAKE_SCRIPT=write + "raise SystemExit(3)")
    assert done.code == 3
    assert "train/loss 1.700 (first 5 steps) -> 1.200 (last 5)" in done.err
    assert "val/loss 2.900 (step 1) -> 2.000 (step 10), best 2.000 at step 10" in done.err
    root = launch.output / "checkpoints/sft/r"
    (root / "global_step_5").mkdir(parents=True)
    (root / "global_step_5/model_world_size_1_rank_0.pt").touch()
    (root / "latest_checkpointed_iteration.txt").write_text("5")
    resumed = sft(launch, "--resume", "r")
    assert "resuming sft/r from step 5 of 15" in resumed.err
    assert resumed.overrides["trainer.resume_mode"] == "auto"
    refused(sft(launch, "--resume", "r", "--gpus", "2"), "written by 1 process(es), this launch has 2")


def test_wandb_entity_reaches_the_environment(launch: Launcher) -> None:
    flags = ["--use_wandb", "--wandb_entity", "team", "--name", "w"]
    printed = launch(*flags, "--dry-run", method="sft", DEVICE="cpu", WANDB_MODE="offline").out
    assert "WANDB_ENTITY=team" in printed


def test_sample_data_is_what_the_script_makes(tmp_path: Path) -> None:
    shutil.copy(ROOT / "sft/data/make_data.py", tmp_path)
    subprocess.run([sys.executable, str(tmp_path / "make_data.py")], check=True)
    for name in ("train", "val", "tools", "thinking"):
        made = (tmp_path / f"{name}.jsonl").read_text()
        assert made == (ROOT / f"sft/data/{name}.jsonl").read_text()
    subprocess.run([sys.executable, str(tmp_path / "make_data.py"), "--check"], check=True)
    first = {json.loads(line)["messages"][0]["content"] for line in (tmp_path / "train.jsonl").open()}
    assert not first & {
        json.loads(line)["messages"][0]["content"] for line in (tmp_path / "val.jsonl").open()
    }
    bad = tmp_path / "train.jsonl"
    bad.write_text(bad.read_text().replace('\\"tea\\": 1', '\\"tea\\": 2', 1))
    assert (
        subprocess.run([sys.executable, str(tmp_path / "make_data.py"), "--check"], check=False).returncode
        == 1
    )


@pytest.mark.parametrize("name", ["tools", "thinking"])
def test_sample_rows_with_tools_and_with_reasoning(launch: Launcher, name: str) -> None:
    data = str(ROOT / f"sft/data/{name}.jsonl")
    done = sft(launch, "--train_data", data, "--val_data", data, "--batch_size", "8", "--name", name)
    assert done.code == 0, done.err
    counts = launch.run_json(name, "sft")["tokens"]["TRAIN_DATA"]
    assert (counts["rows"], counts["samples"]) == (16, 16)
    # SmolLM2's template knows no tools, and the launch says so.
    assert ("16 rows use tools that this model's chat template does not print" in done.err) is (
        name == "tools"
    )
