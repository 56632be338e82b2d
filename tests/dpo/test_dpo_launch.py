"""What dpo/train.sh hands to torchrun, and what it refuses, a line each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dpo_world import pair_rows
from launcher.conftest import ROOT, Launch, Launcher, launch  # noqa: F401  (a fixture)

pytestmark = pytest.mark.slow  # a minute of launches together
QUICK = ("--name", "x", "--no-preflight", "--device", "cpu")


def dpo(launch: Launcher, *flags: str) -> Launch:  # noqa: F811
    return launch(*flags, method="dpo", DEVICE="cpu")


def refused(done: Launch, *words: str) -> None:
    assert done.code == 2, done.err
    assert done.call is None
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert any(all(word in line for word in words) for line in lines), done.err
    assert "Traceback" not in done.err


def test_default_run_on_the_cpu(launch: Launcher) -> None:  # noqa: F811
    done = dpo(launch, "--name", "first")
    assert done.code == 0, done.err
    words, keys = done.call["argv"], done.overrides
    assert words[:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    assert words[5:9] == ["-m", "dpo.dpo_trainer", "--config-path", str(ROOT / "dpo")]
    assert keys["model.use_remove_padding"] == "True"
    assert (keys["dpo.loss_type"], keys["dpo.beta"], keys["data.max_token_len_per_gpu"]) == (
        "sigmoid",
        "0.1",
        "1024",
    )
    assert "dpo.reference_path" not in keys
    record = launch.run_json("first", "dpo")
    assert record["total_steps"] == 480 // 8


def test_reference_and_adapter_reach_the_trainer(launch: Launcher, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    adapter = ["--use_lora", "--lora_adapter_path", str(tmp_path / "adapter"), "--lora_reference", "adapter"]
    keys = dpo(launch, *QUICK, *adapter).overrides
    assert keys["model.lora_adapter_path"] == f'"{tmp_path}/adapter"'
    assert keys["dpo.lora_reference"] == "adapter"
    done = launch(*QUICK[2:], "--name", "y", "--ref_model_path", "smollm2", method="dpo")
    assert done.overrides["dpo.reference_path"] == done.overrides["model.path"]


BAD = [
    (["--beta", "0"], ["BETA=0.0 must be above 0"]),
    (["--beta", "-1"], ["BETA=-1.0 must be above 0"]),
    (["--loss_type", "dpo"], ["LOSS_TYPE='dpo' must be one of sigmoid, hinge, ipo", "simpo, orpo"]),
    (["--loss_type", "hinge", "--label_smoothing", "0.1"], ["LOSS_TYPE=hinge has no label smoothing"]),
    (["--loss_type", "ipo", "--label_smoothing", "0.1"], ["LOSS_TYPE=ipo has no label smoothing"]),
    (["--label_smoothing", "0.7"], ["LABEL_SMOOTHING=0.7 must be at least 0 and below 0.5"]),
    (["--loss_type", "exo_pair"], ["LOSS_TYPE=exo_pair needs LABEL_SMOOTHING above 0"]),
    (["--max_prompt_length", "512"], ["MAX_PROMPT_LENGTH=512 must be above 0 and below MAX_LENGTH=512"]),
    (
        ["--max_tokens_per_gpu", "900"],
        ["MAX_TOKENS_PER_GPU=900", "2 x MAX_LENGTH (a pair stays together) = 1024"],
    ),
    (["--lora_adapter_path", "nowhere"], ["LORA_ADAPTER_PATH=nowhere needs USE_LORA=true"]),
    (["--lora_reference", "adapter"], ["LORA_REFERENCE=adapter needs LORA_ADAPTER_PATH"]),
    (["--ref_model_path", "/no/where"], ["REF_MODEL_PATH=/no/where does not exist"]),
]


@pytest.mark.parametrize(("flags", "words"), BAD)
def test_bad_knobs(launch: Launcher, flags: list[str], words: list[str]) -> None:  # noqa: F811
    refused(dpo(launch, *QUICK, *flags), *words)


def write(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_bad_rows(launch: Launcher, tmp_path: Path) -> None:  # noqa: F811
    good = pair_rows(12)
    file = tmp_path / "rows.jsonl"
    flags = ["--name", "x", "--val_data", "dpo/data/val.jsonl", "--train_data"]
    refused(dpo(launch, *flags, write(file, [{"question": "a", "reply": "b"}] * 3)), "question", "reply")
    refused(dpo(launch, *flags, write(file, [*good, {"prompt": "a", "chosen": "b"}])), "row 13", "rejected")
    refused(dpo(launch, *flags, write(file, [*good, {**good[0], "rejected": ""}])), "row 13", "rejected")
    refused(dpo(launch, *flags, write(file, [*good, {**good[0], "chosen": {"a": 1}}])), "row 13", "chosen")
    same = {"prompt": "a", "chosen": "b", "rejected": "b"}
    refused(dpo(launch, *flags, write(file, [*good, same])), "row 13", "the same as chosen")


def test_long_pairs_stop_the_launch_unless_dropped(launch: Launcher, tmp_path: Path) -> None:  # noqa: F811
    rows = [*pair_rows(16), {"prompt": "Hi", "chosen": "yes " * 600, "rejected": "no"}]
    flags = [
        "--name",
        "x",
        "--val_data",
        "dpo/data/val.jsonl",
        "--train_data",
        write(tmp_path / "r.jsonl", rows),
    ]
    refused(
        dpo(launch, *flags), "1 of 17 pairs are longer than MAX_LENGTH=512 tokens (pair 17)", "TRUNCATION=cut"
    )
    done = dpo(launch, *flags, "--truncation", "drop")
    assert done.code == 0, done.err
    assert "note: data: TRAIN_DATA: 1 of 17 pairs are longer" in done.err
    assert launch.run_json("x", "dpo")["total_steps"] == 2
