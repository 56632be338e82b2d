"""The pieces: a printed command taken apart, lengths, what is kept on disk, the screen."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.cpu.model import ensure_bundled_model
from common.data_utils.lengths import load_tokenizer, prompt_lengths
from common.launcher import device
from common.launcher.errors import UserError
from common.preflight.command import parse
from common.preflight.composing import compose
from common.preflight.cost import Cost, earlier_time, kept_at_once
from common.preflight.finding import error, forced, knob_of, note, ordered, warning
from common.preflight.job import Job
from common.preflight.machine import filesystem_of, visible_gpus
from common.preflight.report import Report
from common.preflight.reward import top_level_names
from common.preflight.screen import as_text, show

from .conftest import CPU_BOX, ROOT, base_command, base_configs, with_overrides, words_of


def test_a_printed_command_is_taken_apart() -> None:
    command = parse(
        shlex.split(
            "cd /r && env A=1 'B=x y' /p -m verl.trainer.main_ppo --config-path /r/grpo --config-name config a.b=1"
        )
    )
    assert (command.task, command.method, command.overrides) == ("rl", "grpo", ["a.b=1"])
    assert command.environment == {"A": "1", "B": "x y"}
    rounds = parse(list(words_of("gspo", "--device", "cpu")))
    assert rounds.method == "gspo"
    assert rounds.raw("actor_rollout_ref.actor.policy_loss.loss_mode") == "gspo"
    nodes = ("--nnodes", "2", "--master_addr", "h", "--node_rank", "1", "--name", "x")
    assert parse(list(words_of("sft", "--device", "gpu", *nodes))).options["node_rank"] == "1"
    with pytest.raises(UserError, match="no training command"):
        parse(["python", "-m", "verl.trainer.main_ppo"])


def test_overrides_on_a_copy_are_what_hydra_composes() -> None:
    from dataclasses import replace

    words = ["data.train_batch_size=16", "+data.apply_chat_template_kwargs.x=1", "~trainer.val_only"]
    command = base_command("grpo", "--device", "cpu")
    whole = compose(replace(command, overrides=[*command.overrides, *words]))
    assert with_overrides(base_configs("grpo", "--device", "cpu")[0], words) == whole


@pytest.mark.parametrize(
    ("keep", "saves", "most"), [(None, 5, 5), (1, 5, 2), (1, 1, 1), (3, 5, 3), (3, 2, 2)]
)
def test_checkpoints_at_the_worst_moment(keep: int | None, saves: int, most: int) -> None:
    assert kept_at_once(keep, saves) == most


def test_prompts_are_counted_exactly_where_they_may_be_too_long(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(ensure_bundled_model()))
    texts = ["short"] * 30 + ["word " * 200] * 3 + ["很长的问题" * 40] * 2 + ["ok"]
    prompts = [[{"role": "user", "content": text}] for text in texts]
    pq.write_table(pa.table({"prompt": prompts}), tmp_path / "rows.parquet")
    ids = [
        len(tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False)) for p in prompts
    ]
    found = prompt_lengths(tmp_path / "rows.parquet", tokenizer, 100)
    assert (found["rows"], found["over_prompt"]) == (36, sum(n > 100 for n in ids))
    assert found["longest_prompt"] == max(ids)
    assert (found["median"], found["sampled"]) == (sorted(ids)[17], 36)
    assert prompt_lengths(tmp_path / "rows.parquet", tokenizer, 100, every=10)["rows"] == 4


def test_a_gpu_machine_with_few_cores_tells_ray_of_enough() -> None:
    command = parse(list(words_of("grpo", "--device", "gpu", "--gpus", "8")))
    few = device.cores() < 34
    assert command.raw("ray_kwargs.ray_init.num_cpus") == ("34" if few else "")


def test_names_of_a_reward_file(tmp_path: Path) -> None:
    file = tmp_path / "r.py"
    file.write_text(
        "import os as o\nif o:\n    def f(): ...\nelse:\n    async def g(): ...\nh = f\nclass C: ...\n"
    )
    assert top_level_names(file) == {"o", "f", "g", "h", "C"}
    file.write_text("from x import *\n")
    assert top_level_names(file) is None


def test_time_comes_from_an_earlier_run_with_the_same_settings(tmp_path: Path) -> None:
    import socket

    knobs = {"MODEL_PATH": "m", "TRAIN_BATCH_SIZE": "8"}
    folder = tmp_path / "logs" / "grpo" / "before"
    folder.mkdir(parents=True)
    (folder / "metrics-1.jsonl").write_text(
        "".join(
            json.dumps({"step": n, "data": {"perf/time_per_step": t}}) + "\n"
            for n, t in ((1, 30), (2, 10), (3, 12))
        )
    )
    attempt = {"metrics": "metrics-1.jsonl", "host": socket.gethostname()}
    (folder / "run.json").write_text(json.dumps({"knobs": knobs, "extra": [], "attempts": [attempt]}))
    record = {
        "knobs": knobs,
        "extra": [],
        "method": "grpo",
        "checkpoint_dir": str(tmp_path / "checkpoints" / "grpo" / "now"),
    }
    command = base_command("grpo", "--device", "cpu")
    job = Job(command, *base_configs("grpo", "--device", "cpu"), CPU_BOX, record)
    assert earlier_time(job) == (11.0, "before")
    for number, broken in enumerate(([], {"knobs": None, "attempts": []}, {"knobs": knobs, "attempts": []})):
        (folder.parent / f"{number}").mkdir()
        (folder.parent / f"{number}" / "run.json").write_text(json.dumps(broken))
    assert earlier_time(job) == (11.0, "before")
    job.record["knobs"] = {**knobs, "TRAIN_BATCH_SIZE": "16"}
    assert earlier_time(job) == (None, "")


def test_a_command_with_an_open_quote_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "common.preflight"],
        input="x ' y",
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "stdin is no command that a shell could read (No closing quotation)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_knob_of_a_sentence() -> None:
    assert knob_of("TRAIN_BATCH_SIZE x ROLLOUT_N = 9 x 3 = 27 must divide by 8 GPUs") == "TRAIN_BATCH_SIZE"


def test_visible_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\nfor i in 0 1 2; do echo "$i, H100, 580.1, 81559, 81000, 9.0"; done\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert [gpu.index for gpu in visible_gpus({})] == ["0", "1", "2"]
    assert [gpu.index for gpu in visible_gpus({"CUDA_VISIBLE_DEVICES": "2,0"})] == ["2", "0"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert len(visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-aa,GPU-bb"})) == 2


def test_the_filesystem_of_a_folder() -> None:
    assert filesystem_of(Path("/proc/1")) == "proc"
    assert filesystem_of(ROOT / "not" / "there") == filesystem_of(ROOT)


def test_findings_are_ordered_and_forced() -> None:
    found = ordered([note("n"), warning("w"), error("e"), error("e")])
    assert [finding.text for finding in found] == ["e", "w", "n"]
    assert [finding.severity for finding in forced(found)] == ["warning", "warning", "note"]


def test_the_screen_without_a_terminal_is_plain_and_whole() -> None:
    cost = Cost(
        [("rollout", 8 << 30, 2 << 30, {}), ("update", 20 << 30, 3 << 30, {})],
        10**9,
        10**6,
        4 << 30,
        2,
        9 << 30,
    )
    report = Report({"model": "m" * 200}, cost, [error("bad"), warning("hm")])
    text = as_text(report)
    assert f"model      {'m' * 200}\n" in text
    assert "a GPU, GiB by phase (estimated): rollout 8.0, update 20.0; host at most 3.0 GiB" in text
    assert "up to 2 checkpoints x 4.0 GiB, 9.0 GiB free" in text
    assert text.endswith("error: bad\nwarning: hm\npreflight  1 error, 1 warning: nothing was started\n")
    stream = io.StringIO()
    show(report, stream)
    assert stream.getvalue() == text


def test_the_screen_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    show(Report({"model": "m [red]"}, None, [error("[bad] " + "x" * 300)]), stream)
    assert "m [red]" in stream.getvalue()
    assert "[bad] " + "x" * 300 in stream.getvalue()
    assert "\x1b[" in stream.getvalue()


def test_a_large_file_is_sampled_until_a_prompt_is_too_long(tmp_path: Path) -> None:
    from common.data_utils.lengths import overlong

    def counted(long_rows: int) -> dict[str, int]:
        texts = ["word " * (400 if i < long_rows else 1) for i in range(20_500)]
        path = tmp_path / f"{long_rows}.parquet"
        pq.write_table(pa.table({"prompt": [[{"role": "user", "content": text}] for text in texts]}), path)
        return overlong(path, "rl", str(ensure_bundled_model()), 100, None)

    assert counted(0)["rows"] == 4100
    found = counted(7)
    assert (found["rows"], found["over_prompt"]) == (20_500, 7)
