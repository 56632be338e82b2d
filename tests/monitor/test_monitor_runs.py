"""Finding runs, stitching attempts, telling their state."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from monitor_fixtures import jsonl, make_run, sample, write

from benchmarks import monitor_logs
from monitor.api import PanelApi
from monitor.discover import Scanner
from monitor.metrics_collector import Collector
from monitor.run import Run

Load = Callable[[Path], PanelApi]


def only(api: PanelApi) -> Run:
    (run,) = api.collector.runs()
    return run


def test_run_folder(tmp_path: Path, loaded: Load) -> None:
    make_run(tmp_path / "grpo" / "a")
    run = only(loaded(tmp_path))
    assert (run.id, run.method, run.model, run.last_step, run.total_steps) == (
        "grpo/a",
        "grpo",
        "Qwen/Qwen3-8B",
        20,
        20,
    )
    assert run.series("actor/kl_loss").steps.tolist() == list(range(1, 21))


def test_plain_verl_output_is_one_run_per_file(tmp_path: Path, loaded: Load) -> None:
    for name in ("first", "second"):
        write(tmp_path / "project" / f"{name}.jsonl", jsonl([(1, {"train/loss": 1.0})]))
    write(tmp_path / "project" / "notes.txt", "nothing of ours\n")
    runs = loaded(tmp_path).collector.runs()
    assert {run.id for run in runs} == {"project/first.jsonl", "project/second.jsonl"}
    assert {run.method for run in runs} == {"sft"}


def test_single_old_console_log(tmp_path: Path, loaded: Load) -> None:
    log = write(
        tmp_path / "train_output",
        "config ...\n(TaskRunner pid=1) step:1 - actor/pg_loss:0.5 - critic/vf_loss:1\n",
    )
    run = only(loaded(log))
    assert run.method == "ppo"
    assert run.series("actor/pg_loss").values.tolist() == [0.5]


def test_console_of_a_folder_fills_what_the_file_logger_lost(tmp_path: Path, loaded: Load) -> None:
    write(
        tmp_path / "r" / "metrics-1.jsonl",
        '{"step":1,"data":{"a":null,"b":1}}\n{"step":2,"data":{"a":null,"b":2}}\n',
    )
    write(tmp_path / "r" / "console-1.log", "step:1 - a:inf - b:1\nstep:2 - a:nan - b:2 - only_here:3\n")
    run = only(loaded(tmp_path))
    assert run.series("a").values[0] == np.inf
    assert np.isnan(run.series("a").values[1])
    assert run.series("only_here").values.tolist() == [3.0]


def test_console_is_not_read_where_the_metrics_tell_everything(tmp_path: Path, loaded: Load) -> None:
    folder = make_run(tmp_path / "r", steps=3)
    write(folder / "console-1.log", "step:1 - only_here:1\n")
    run = only(loaded(tmp_path))
    assert "only_here" not in run.metrics
    assert run.sources() == ["metrics-1.jsonl"]


def test_console_alone_serves_an_attempt_without_metrics(tmp_path: Path, loaded: Load) -> None:
    folder = make_run(tmp_path / "r", steps=3)
    (folder / "metrics-1.jsonl").write_text("")
    write(folder / "console-1.log", "step:1 - actor/pg_loss:np.float64(0.5)\n")
    assert only(loaded(tmp_path)).series("actor/pg_loss").values.tolist() == [0.5]


def test_event_files_are_used_when_there_is_nothing_else(tmp_path: Path, loaded: Load) -> None:
    monitor_logs.write_tfevents(tmp_path / "tensorboard_log" / "p" / "e" / "events.out.tfevents.1.h", 0, 50)
    run = only(loaded(tmp_path))
    assert run.last_step == 50
    assert len(run.metrics) == 20


def test_attempts_are_stitched_and_the_latest_wins(tmp_path: Path, loaded: Load) -> None:
    folder = make_run(tmp_path / "r")
    write(folder / "metrics-1.jsonl", jsonl([(s, {"a": s * 1.0}) for s in range(1, 11)]))
    # resumed at 6, whose first record is the validation before training
    rest = [(6, {"val-core/x/acc/mean@1": 0.5})] + [(s, {"a": s * 10.0}) for s in range(7, 13)]
    write(folder / "metrics-2.jsonl", jsonl(rest))
    run = only(loaded(tmp_path))
    series = run.series("a")
    assert series.steps.tolist() == list(range(1, 13))
    assert series.values.tolist() == [1, 2, 3, 4, 5, 6, 70, 80, 90, 100, 110, 120]
    ((steps, values),) = series.branches
    assert steps.tolist() == [6, 7, 8, 9, 10]  # from the point where it leaves the line
    assert values.tolist() == [6, 7, 8, 9, 10]
    assert run.resumed_at == [6]
    assert run.last_step == 12


def test_backward_jump_inside_one_file_is_a_resume_too(tmp_path: Path, loaded: Load) -> None:
    log = write(
        tmp_path / "c.log",
        "".join(f"step:{s} - a:{v}\n" for s, v in [(1, 1), (2, 2), (3, 3), (2, 20), (3, 30)]),
    )
    series = only(loaded(log)).series("a")
    assert series.steps.tolist() == [1, 2, 3]
    assert series.values.tolist() == [1, 20, 30]


def state_of(run: Run, idle: float) -> str:
    return run.state(run.written + idle, 5.0, 120.0)[0]


@pytest.mark.parametrize("declared", ["finished", "failed", "interrupted"])
def test_declared_end_is_the_state(tmp_path: Path, loaded: Load, declared: str) -> None:
    make_run(tmp_path / "r", state=declared)
    assert state_of(only(loaded(tmp_path)), 1e6) == declared


def test_running_then_stalled_by_silence(tmp_path: Path, loaded: Load) -> None:
    make_run(tmp_path / "r", state="running", total=100)
    run = only(loaded(tmp_path))
    assert state_of(run, 10) == "running"
    assert state_of(run, 1000) == "stalled"
    assert run.eta("running") == pytest.approx(80 * 2.0)


def test_running_with_its_process_gone_is_failed(tmp_path: Path, loaded: Load) -> None:
    import socket

    make_run(tmp_path / "r", state="running", pid=2**22 - 3, host=socket.gethostname())
    state, why = only(loaded(tmp_path)).state(time.time(), 5, 120)
    assert state == "failed"
    assert "gone" in why


def test_old_console_that_ends_in_an_error(tmp_path: Path, loaded: Load) -> None:
    text = "step:1 - a:1\nTraceback (most recent call last):\n  File 'x'\nRuntimeError: no space left\n"
    run = only(loaded(write(tmp_path / "c.log", text)))
    assert run.state(run.written + 60, 5, 120) == ("failed", "RuntimeError: no space left")


def test_damaged_run_json_is_said_and_the_curves_stay(tmp_path: Path, loaded: Load) -> None:
    folder = make_run(tmp_path / "r")
    (folder / "run.json").write_text("{not json")
    run = only(loaded(tmp_path))
    assert any("run.json cannot be read" in line for line in run.problems())
    assert run.last_step == 20


def test_secrets_are_masked(tmp_path: Path, loaded: Load) -> None:
    make_run(
        tmp_path / "r", knobs={"HF_TOKEN": "hf_abc", "X": "sk-12345", "LR": "1", "nested": {"password": "p"}}
    )
    shown = json.dumps(only(loaded(tmp_path)).knobs())
    for secret in ("hf_abc", "sk-12345", "hush", '"p"'):
        assert secret not in shown
    assert '"LR": "1"' in shown


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    outside = make_run(tmp_path / "outside" / "r")
    root = tmp_path / "logs"
    make_run(root / "inside")
    (root / "link").symlink_to(outside)
    (root / "inside" / "console-1.log").symlink_to(outside / "metrics-1.jsonl")
    found = Scanner(root).scan()
    assert [run.id for run in found.runs] == ["inside"]
    assert found.runs[0].consoles == []
    assert sum("leads out" in note for note in found.notes) == 2


def test_empty_and_missing_folder(tmp_path: Path, loaded: Load) -> None:
    assert loaded(tmp_path).collector.runs() == []
    missing = loaded(tmp_path / "not" / "there")
    assert missing.collector.runs() == []
    assert "No such file" in missing.collector.notes[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_named(tmp_path: Path, loaded: Load) -> None:
    folder = make_run(tmp_path / "r")
    (folder / "metrics-1.jsonl").chmod(0)
    assert any("Permission denied" in line for line in only(loaded(tmp_path)).problems())


def test_rollout_folder_of_a_plain_run_is_adopted(tmp_path: Path, loaded: Load) -> None:
    write(tmp_path / "exp" / "exp.jsonl", jsonl([(1, {"actor/pg_loss": 1.0})]))
    write(tmp_path / "exp" / "dumped" / "1.jsonl", sample(1, "p", 0, 1.0))
    write(tmp_path / "exp" / "val_generations" / "1.jsonl", sample(1, "p", 0, 1.0))
    run = only(loaded(tmp_path))
    assert run.samples.steps() == [1]
    assert run.validation.steps() == [1]


def test_collector_follows_a_growing_run_and_new_and_deleted_ones(tmp_path: Path) -> None:
    make_run(tmp_path / "a", steps=2, state="running")
    collector = Collector(tmp_path, rescan_seconds=0.0001)
    collector.load_all()
    collector.tick()
    with (tmp_path / "a" / "metrics-1.jsonl").open("a") as out:
        out.write(jsonl([(3, {"actor/pg_loss": 3.0})]))
    make_run(tmp_path / "b")
    collector.tick()
    collector.tick()
    assert {run.id: run.last_step for run in collector.runs()} == {"a": 3, "b": 20}
    for path in sorted((tmp_path / "a").iterdir()):
        path.unlink()
    (tmp_path / "a").rmdir()
    collector.tick()
    assert [run.id for run in collector.runs()] == ["b"]


def test_background_load_uses_the_second_process_and_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor.metrics_collector.HELPER_FROM_BYTES", 1 << 20)
    for i in range(4):
        monitor_logs.write_jsonl(tmp_path / "logs" / f"r{i}" / "metrics-1.jsonl", i, 4000)
    for _ in range(2):
        collector = Collector(tmp_path / "logs", cache=tmp_path / "cache")
        collector.start()
        assert collector.complete.wait(60)
        assert {run.last_step for run in collector.runs()} == {4000}
        assert len(collector.runs()) == 4
        assert collector.failure == ""
        collector.stop()
    assert len(list((tmp_path / "cache").glob("*.idx"))) == 4


def test_time_axis_comes_from_the_step_times(tmp_path: Path, loaded: Load) -> None:
    make_run(tmp_path / "r")
    axis = only(loaded(tmp_path)).axis("time")
    assert axis is not None
    assert axis[1].tolist() == [2.0 * step for step in range(1, 21)]


def test_time_axis_of_sft_comes_from_the_gpu_log(tmp_path: Path, loaded: Load) -> None:
    folder = make_run(tmp_path / "r")
    write(folder / "metrics-1.jsonl", jsonl([(s, {"train/loss": 1.0}) for s in range(1, 4)]))
    write(
        folder / "gpu.jsonl",
        "".join(
            json.dumps(
                {"time": 1000.0 + 5 * s, "host": "h", "step": s, "gpus": [], "cpu": 1.0, "ram_used": 1}
            )
            + "\n"
            for s in range(1, 4)
        ),
    )
    axis = only(loaded(tmp_path)).axis("time")
    assert axis is not None
    assert axis[1].tolist() == [0.0, 5.0, 10.0]
    write(folder / "gpu.jsonl", "")
    assert only(loaded(tmp_path)).axis("time") is None


def test_gpu_log_gives_columns_per_gpu_and_step(tmp_path: Path, loaded: Load) -> None:
    folder = make_run(tmp_path / "r")
    rows = [
        {"time": 10.0 + i, "host": "h", "step": None if i == 0 else 1 + i // 3, "cpu": 5.0, "ram_used": 2**30,
         "gpus": [{"index": g, "util": 10 * g + i, "mem_used": 2**31, "power": None, "temp": 50} for g in (0, 1)]}
        for i in range(6)
    ]  # fmt: skip
    write(folder / "gpu.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + "broken\n" + '{"time": 1')
    run = only(loaded(tmp_path))
    assert run.series("gpu/1/util_percent").steps.tolist() == [1, 2]
    assert run.series("gpu/1/util_percent").values.tolist() == [11.5, 14.0]
    assert run.series("gpu/0/memory_gb").values.tolist() == [2.0, 2.0]
    assert np.isnan(run.series("gpu/0/power_w").values).all()
    assert run.gpu.problems() == ["gpu.jsonl: 1 lines skipped"]


def test_damaged_gpu_numbers_do_not_stop_the_rest(tmp_path: Path, loaded: Load) -> None:
    folder = make_run(tmp_path / "r")
    write(folder / "gpu.jsonl", '{"time": "x"}\n{"time": 1, "gpus": [{"noindex": 1}]}\n[1]\n')
    assert only(loaded(tmp_path)).gpu.problems() == ["gpu.jsonl: 3 lines skipped"]


def test_judge_metrics_are_added_up_per_step(tmp_path: Path, loaded: Load) -> None:
    folder = make_run(tmp_path / "r", steps=3)
    line = {"time": 1.0, "host": "h", "pid": 1, "step": 1, "split": "train", "samples": 4, "calls": 5, "cache_hits": 1,
            "retries": 1, "failures": 1, "tokens_in": 100, "tokens_out": 10, "cost": 0.25, "seconds": 10.0}  # fmt: skip
    rows = [line, line | {"pid": 2}, line | {"step": 2, "failures": 0}, line | {"step": 2, "split": "val"},
            line | {"step": None}]  # fmt: skip
    write(folder / "judge-metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + "broken\n")
    run = only(loaded(tmp_path))
    assert run.series("judge/samples").steps.tolist() == [1, 2]
    assert run.series("judge/samples").values.tolist() == [8.0, 4.0]
    assert run.series("judge/failure_share").values.tolist() == [0.25, 0.0]
    assert run.series("judge/seconds_per_call").values.tolist() == [2.0, 2.0]
    assert np.isnan(run.series("judge/val/cost").values[0]) and run.series("judge/val/cost").values[1] == 0.25
    assert run.judge.problems() == ["judge-metrics.jsonl: 1 lines skipped"]


def test_rounds_of_self_play_are_one_curve_with_marks(tmp_path: Path, loaded: Load) -> None:
    folder = make_run(tmp_path / "gspo" / "rounds", steps=5)
    for number, begin in ((2, 6), (3, 11)):
        rows = [(step, {"critic/score/mean": step / 15}) for step in range(begin, begin + 5)]
        write(folder / f"metrics-{number}.jsonl", jsonl(rows))
    run = only(loaded(tmp_path))
    assert run.series("critic/score/mean").steps.tolist() == list(range(1, 16))
    assert run.resumed_at == [6, 11]
    assert run.series("critic/score/mean").branches == []
