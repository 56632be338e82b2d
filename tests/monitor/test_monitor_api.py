# ruff: noqa: E501  (tables of cases read better on one line)
"""What travels between page and server: increments, zoom, smoothing, lists, exports, errors."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monitor_fixtures import ROOT, jsonl, make_run, write

from benchmarks import monitor_logs
from monitor import settings
from monitor.api import PanelApi

Load = Callable[[Path], PanelApi]


def floats(text: str) -> list[float]:
    return [float(value) for value in np.frombuffer(base64.b64decode(text), dtype="<f4")]


class Page:
    """A browser's half of ``poll``: keeps lines as charts.js does."""

    def __init__(self, api: PanelApi, runs: list[str], charts: list[str], **view: Any) -> None:
        self.call = api.functions()["poll"]
        self.view = {"runs": runs, "smoothing": 0.0, "axis": "step"} | view
        self.view["charts"] = [{"id": c, "metric": c, "pixels": 100} for c in charts]
        self.sequence = 0
        self.lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
        self.last: dict[str, Any] = {}
        self.show(fresh=True)

    def show(self, **change: Any) -> None:
        self.view |= change
        self._take(self.call({"session": "s", "view": self.view}))
        self.view.pop("fresh", None)

    def poll(self) -> dict[str, Any]:
        self._take(self.call({"session": "s", "sequence": self.sequence}))
        return self.last

    def _take(self, reply: dict[str, Any]) -> None:
        assert "error" not in reply, reply
        self.last = json.loads(json.dumps(reply))
        self.sequence = reply.get("sequence", self.sequence)
        for line in reply.get("lines", []):
            if "none" in line:
                continue
            key = (line["chart"], line["run"])
            points = list(zip([x + line["x0"] for x in floats(line["x"])], floats(line["y"]), strict=True))
            if line["at"] is None:
                self.lines[key] = points
            else:
                kept = [point for point in self.lines[key] if point[0] < line["at"] + line["x0"]]
                self.lines[key] = kept + points


def grow(api: PanelApi, path: Path, step: int) -> None:
    monitor_logs.append_line(path, step)
    api.collector.tick()


def test_increments_add_up_to_what_a_new_page_gets(tmp_path: Path, loaded: Load) -> None:
    log = tmp_path / "r" / "metrics-1.jsonl"
    monitor_logs.write_jsonl(log, 1, 1500)
    api = loaded(tmp_path)
    charts = ["actor/pg_loss", "reward_mean", "actor/grad_norm"]
    page = Page(api, ["r"], charts, smoothing=0.5)
    for step in range(1501, 1660):
        grow(api, log, step)
        page.poll()
    assert page.lines == Page(api, ["r"], charts, smoothing=0.5).lines
    spike = 1500 // 2 + 1
    assert max(page.lines["actor/grad_norm", "r"], key=lambda point: point[1]) == (spike + 1.0, 1000.0)


def test_an_increment_is_small_and_no_news_is_almost_nothing(tmp_path: Path, loaded: Load) -> None:
    log = tmp_path / "r" / "metrics-1.jsonl"
    monitor_logs.write_jsonl(log, 1, 20_000)
    api = loaded(tmp_path)
    page = Page(api, ["r"], ["actor/pg_loss"])
    assert page.poll() == {"unchanged": True, "sequence": page.sequence}
    grow(api, log, 20_001)
    (line,) = page.poll()["lines"]
    assert len(floats(line["x"])) <= 4
    assert line["at"] is not None


def test_two_pages_do_not_disturb_each_other(tmp_path: Path, loaded: Load) -> None:
    log = tmp_path / "r" / "metrics-1.jsonl"
    monitor_logs.write_jsonl(log, 1, 100)
    api = loaded(tmp_path)
    poll = api.functions()["poll"]
    view = {"runs": ["r"], "charts": [{"id": "a", "metric": "actor/pg_loss", "pixels": 200}], "fresh": True}
    one, two = (poll({"session": name, "view": view}) for name in ("one", "two"))
    grow(api, log, 101)
    for name, reply in (("one", one), ("two", two)):
        assert len(poll({"session": name, "sequence": reply["sequence"]})["lines"]) == 1


def test_lost_reply_leads_to_a_resync(tmp_path: Path, loaded: Load) -> None:
    make_run(tmp_path / "r")
    poll = loaded(tmp_path).functions()["poll"]
    poll({"session": "s", "view": {"runs": [], "charts": []}})
    assert poll({"session": "s", "sequence": 0}) == {"resync": True}
    assert poll({"session": "unknown", "sequence": 5}) == {"resync": True}


def test_zoom_brings_finer_points(tmp_path: Path, loaded: Load) -> None:
    monitor_logs.write_jsonl(tmp_path / "r" / "metrics-1.jsonl", 1, 20_000)
    page = Page(loaded(tmp_path), ["r"], ["actor/pg_loss"])
    coarse = [x for x, _ in page.lines["actor/pg_loss", "r"] if 5000 <= x <= 5050]
    page.show(
        charts=[{"id": "actor/pg_loss", "metric": "actor/pg_loss", "pixels": 100, "span": [5000, 5050]}]
    )
    fine = [x for x, _ in page.lines["actor/pg_loss", "r"] if 5000 <= x <= 5050]
    assert len(coarse) < 5
    assert fine == list(range(5000, 5051))


def test_non_finite_points_are_marked_and_leave_the_line(tmp_path: Path, loaded: Load) -> None:
    write(tmp_path / "r" / "metrics-1.jsonl", jsonl([(1, {"a": 1.0}), (2, {"a": None}), (3, {"a": 3.0})]))
    page = Page(loaded(tmp_path), ["r"], ["a"])
    (line,) = page.last["lines"]
    assert line["broken"] == [[2.0, "NaN"]]
    assert np.isnan(floats(line["y"])[1])


def test_resumed_run_sends_marks_and_the_superseded_branch(tmp_path: Path, loaded: Load) -> None:
    write(tmp_path / "r" / "metrics-1.jsonl", jsonl([(s, {"a": 1.0}) for s in range(1, 6)]))
    write(tmp_path / "r" / "metrics-2.jsonl", jsonl([(s, {"a": 2.0}) for s in range(4, 8)]))
    page = Page(loaded(tmp_path), ["r"], ["a"])
    (line,) = page.last["lines"]
    assert line["marks"] == [4.0]
    assert floats(line["branches"][0]["x"]) == [3.0, 4.0, 5.0]
    assert page.lines["a", "r"] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2)]


def test_axes(tmp_path: Path, loaded: Load) -> None:
    make_run(tmp_path / "r", steps=4)
    api = loaded(tmp_path)
    time_x = Page(api, ["r"], ["actor/pg_loss"], axis="time").lines["actor/pg_loss", "r"]
    assert [x for x, _ in time_x] == [2, 4, 6, 8]
    token_x = Page(api, ["r"], ["actor/pg_loss"], axis="tokens").lines["actor/pg_loss", "r"]
    assert [x for x, _ in token_x] == [1000, 2000, 3000, 4000]
    write(tmp_path / "s" / "metrics-1.jsonl", jsonl([(1, {"train/loss": 1.0})]))
    page = Page(loaded(tmp_path), ["s"], ["train_loss"], axis="tokens")
    assert page.last["lines"] == [{"chart": "train_loss", "run": "s", "key": "train/loss", "none": "tokens"}]


def test_million_step_runs_keep_their_steps_apart(tmp_path: Path, loaded: Load) -> None:
    first = 40_000_000  # beyond what float32 tells apart
    write(tmp_path / "r" / "metrics-1.jsonl", jsonl([(first + i, {"a": float(i)}) for i in range(5)]))
    page = Page(loaded(tmp_path), ["r"], ["a"])
    assert page.lines["a", "r"] == [(first + i, i) for i in range(5)]


@pytest.mark.parametrize(
    ("plain", "data", "key"),
    [
        ("policy_loss", {"actor/pg_loss": 1.0, "actor/loss": 2.0}, "actor/pg_loss"),
        ("train_loss", {"train/loss": 1.0}, "train/loss"),
        ("policy_loss", {"train/loss": 1.0}, None),
        ("learning_rate", {"train/lr": 1.0}, "train/lr"),
        ("grad_norm", {"train/grad_norm": 1.0}, "train/grad_norm"),
        ("preference_accuracy", {"train/rewards/accuracies": 1.0}, "train/rewards/accuracies"),
        ("validation", {"val/loss": 1.0, "val/rewards/accuracies": 0.5}, "val/rewards/accuracies"),
        ("value_loss", {"critic/vf_loss": 1.0}, "critic/vf_loss"),
        ("kl_loss", {"actor/kl_loss": 1.0}, "actor/kl_loss"),
        ("kl_divergence", {"actor/ppo_kl": 1.0, "actor/reward_kl_penalty": 1.0}, "actor/reward_kl_penalty"),
        ("kl_divergence", {"actor/ppo_kl": 1.0}, "actor/ppo_kl"),
        ("reward_mean", {"critic/score/mean": 1.0, "critic/rewards/mean": 1.0}, "critic/score/mean"),
        ("reward_mean", {"train/rewards/margins": 1.0}, "train/rewards/margins"),
        ("entropy", {"actor/entropy_loss": 1.0}, "actor/entropy_loss"),
        ("validation", {"val-aux/x": 1.0, "val-core/d/reward/mean@4": 1.0, "val-core/d/acc/mean@4": 1.0}, "val-core/d/acc/mean@4"),
        ("validation", {"val/loss": 1.0}, "val/loss"),
        ("value_loss", {"actor/pg_loss": 1.0}, None),
    ],
)  # fmt: skip
def test_plain_names_stand_for_verl_keys(
    tmp_path: Path, loaded: Load, plain: str, data: dict[str, float], key: str | None
) -> None:
    write(tmp_path / "r" / "metrics-1.jsonl", jsonl([(1, data)]))
    api = loaded(tmp_path)
    assert api.resolve(api.collector.runs()[0], plain) == key


def test_plain_names_of_the_issue_are_explained_in_both_languages(config: settings.Settings) -> None:
    names = {
        "policy_loss",
        "value_loss",
        "kl_loss",
        "reward_mean",
        "reward_std",
        "kl_divergence",
        "entropy",
        "gpu_utilization",
    }
    assert names <= config.names.keys()
    for name in names:
        assert {"en", "zh"} <= config.names[name].meaning.keys()


@pytest.mark.parametrize(
    ("key", "group"),
    [
        ("train/loss", "loss"), ("train/lr", "loss"), ("train/grad_norm", "loss"), ("val/loss", "validation"),
        ("train/global_tokens", "throughput"), ("train/mfu", "throughput"), ("train/rewards/chosen", "reward"),
        ("train/logps/rejected", "reward"), ("val/rewards/accuracies", "validation"), ("critic/vf_loss", "loss"),
        ("critic/vf_explained_var", "loss"), ("critic/values/mean", "loss"), ("critic/score/mean", "reward"),
        ("actor/kl_loss", "kl"), ("actor/entropy_loss", "entropy"), ("actor/ppo_kl", "kl"), ("actor/entropy", "entropy"), ("timing_s/gen", "timing"),
        ("response_length/mean", "length"), ("perf/throughput", "throughput"), ("val-core/x/acc/mean@1", "validation"),
        ("perf/max_memory_allocated_gb", "memory"), ("judge/cost", "judge"), ("gpu/0/power_w", "gpu"), ("x", "other"),
    ],
)  # fmt: skip
def test_keys_of_every_method_have_their_group(config: settings.Settings, key: str, group: str) -> None:
    assert next(g.id for g in config.groups if g.pattern.search(key)) == group


def test_run_list(tmp_path: Path, loaded: Load) -> None:
    make_run(tmp_path / "r", state="running", total=40)
    api = loaded(tmp_path)
    entry = api.entry(api.collector.runs()[0], api.collector.runs()[0].written)
    assert (entry["state"], entry["step"], entry["total"], entry["eta"]) == ("running", 20, 40, 40)
    assert (entry["validation"], entry["last"], entry["best"], entry["best_step"]) == (
        "val-core/gsm8k/acc/mean@1", pytest.approx(0.6), pytest.approx(0.6), 20,
    )  # fmt: skip


def test_deleted_run_leaves_the_list(tmp_path: Path, loaded: Load) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    api = loaded(tmp_path)
    page = Page(api, ["a"], ["actor/pg_loss"])
    assert {entry["id"] for entry in page.last["list"]["runs"]} == {"a", "b"}
    for path in sorted((tmp_path / "a").iterdir()):
        path.unlink()
    (tmp_path / "a").rmdir()
    api.collector._next_scan = 0.0
    api.collector.tick()
    api._listed_at = 0.0
    assert page.poll()["list"]["gone"] == ["a"]


def test_compare_marks_differences_and_masks_secrets(tmp_path: Path, loaded: Load) -> None:
    make_run(tmp_path / "a", knobs={"LR": "1e-6", "N": 4, "WANDB_API_KEY": "k1"})
    make_run(tmp_path / "b", knobs={"LR": "3e-6", "N": 4, "WANDB_API_KEY": "k2"})
    rows = {row["name"]: row for row in loaded(tmp_path).compare({"runs": ["a", "b"]})["rows"]}
    assert (rows["LR"]["cells"], rows["LR"]["differs"]) == (["1e-6", "3e-6"], True)
    assert not rows["N"]["differs"]
    assert set(rows["WANDB_API_KEY"]["cells"]) == {"••••••"}
    assert rows["algorithm.adv_estimator"]["cells"] == ["grpo", "grpo"]


def test_csv_has_every_point_and_no_formula(tmp_path: Path, loaded: Load) -> None:
    write(tmp_path / "=run" / "metrics-1.jsonl", jsonl([(s, {"a": s / 2}) for s in range(1, 4)]))
    text = loaded(tmp_path).export_csv({"runs": ["=run"], "metric": "a"})["csv"]
    assert text.splitlines() == ["run,metric,step,value", "'=run,a,1,0.5", "'=run,a,2,1.0", "'=run,a,3,1.5"]


def test_health_names_the_step_and_the_advice_in_the_page_language(tmp_path: Path, loaded: Load) -> None:
    write(tmp_path / "r" / "metrics-1.jsonl", jsonl([(s, {"actor/kl_loss": 0.5}) for s in range(1, 30)]))
    api = loaded(tmp_path)
    english = api.health({"runs": ["r"], "lang": "en"})["runs"][0]["observations"][0]
    assert (english["rule"], english["since"], english["metric"]) == ("kl_high", 1, "actor/kl_loss")
    assert "KL_LOSS_COEF" in english["advice"]
    assert "参考模型" in api.health({"runs": ["r"], "lang": "zh"})["runs"][0]["observations"][0]["text"]


def test_gpu_status_without_a_gpu_says_so(tmp_path: Path, loaded: Load) -> None:
    make_run(tmp_path / "r")
    reply = loaded(tmp_path).gpu({"run": "r"})
    assert reply["live"]["ram_total"] > 0
    assert bool(reply["live"]["gpus"]) != bool(reply["reason"])
    assert reply["recorded"]["count"] == 0


@pytest.mark.parametrize("request_body", [None, [], "x", {}, {"view": 5}, {"view": {}}, {"view": {"runs": [], "charts": [{}]}},
                                          {"view": {"runs": [], "charts": [], "smoothing": 1.0}}, {"view": {"runs": [], "charts": [], "axis": "x"}},
                                          {"run": "../../etc"}, {"runs": "a"}, {"run": "r", "step": "x", "page": "y"}])  # fmt: skip
def test_nothing_a_browser_sends_breaks_a_function(tmp_path: Path, loaded: Load, request_body: Any) -> None:
    make_run(tmp_path / "r")
    for function in loaded(tmp_path).functions().values():
        reply = function(request_body)
        assert isinstance(reply, dict)
        assert "Traceback" not in json.dumps(reply)


def test_settings_file_is_really_read(tmp_path: Path) -> None:
    text = (ROOT / "monitor" / "config.yaml").read_text(encoding="utf-8")
    changed = write(
        tmp_path / "c.yaml",
        text.replace("refresh_seconds: 2", "refresh_seconds: 7").replace(
            "index_cache: auto", "index_cache: off"
        ),
    )
    read = settings.load(changed)
    assert (read.refresh_seconds, read.index_cache) == (7.0, None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("refresh_seconds: 2", "refresh_second: 2", "unknown key 'refresh_second'"),
        ("refresh_seconds: 2", "refresh_seconds: 0", "must be a number above 0"),
        ("page_groups: 8", "", "key 'page_groups' is missing"),
        ("best: max", "best: most", "best must be max or min"),
        ("test: above", "test: over", "unknown test 'over'"),
        ("charts:", "charts: [", "is not YAML"),
    ],
)
def test_bad_setting_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (ROOT / "monitor" / "config.yaml").read_text(encoding="utf-8")
    with pytest.raises(settings.SettingsError, match=message):
        settings.load(write(tmp_path / "c.yaml", text.replace(old, new, 1)))
