# ruff: noqa: E501  (JavaScript read better on one line)
"""The page in a real browser: zoom, spikes, live growth, samples, deletion. Needs Debian's chromium."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from monitor_fixtures import ROOT, jsonl, make_run, sample, write
from test_monitor_app import panel

from benchmarks import monitor_logs
from benchmarks.monitor_browser import CHROMIUM, FLAGS
from benchmarks.monitor_heap import heap_growth

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CARD = "window.vtPanel.app.charts.cards.get('{}')"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium. Missing: a failure in CI, a skip elsewhere; never installed by a test."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright: pip install -r requirements-dev.txt")
    if not Path(CHROMIUM).exists():
        _missing("chromium: apt-get install -y chromium")
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


def _missing(what: str) -> None:
    text = f"the browser tests need {what}"
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)


class Tab:
    """A page that must log no error and call nothing outside this machine."""

    def __init__(self, browser: Any, address: str, width: int = 1440, height: int = 900) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        self.page.on("request", self._request)
        self.page.goto(address)

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1", "data:", "blob:")):
            self.problems.append(f"outside request: {request.url}")

    def painted(self) -> None:
        self.page.wait_for_selector("[data-painted]", timeout=60_000)

    def js(self, code: str) -> Any:
        return self.page.evaluate(code)

    def wait(self, condition: str, seconds: float = 30) -> None:
        self.page.wait_for_function(condition, timeout=seconds * 1000)

    def shot(self, name: str) -> None:
        if folder := os.environ.get("MONITOR_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))

    def close(self) -> None:
        self.page.close()
        assert self.problems == []


def fast_refresh(folder: Path, seconds: float) -> Path:
    """The shipped settings with another refresh time."""
    shipped = (ROOT / "monitor" / "config.yaml").read_text(encoding="utf-8")
    changed = shipped.replace("refresh_seconds: 2 ", f"refresh_seconds: {seconds} ")
    assert changed != shipped
    return write(folder / "config.yaml", changed)


def test_zoom_stays_and_a_spike_shows(tmp_path: Path, browser: Any) -> None:
    log = tmp_path / "logs" / "r" / "metrics-1.jsonl"
    monitor_logs.write_jsonl(log, 1, 100_000)
    spike = 100_000 // 2 + 1 + 1
    config = fast_refresh(tmp_path, 0.3)
    with panel(tmp_path / "logs", "--config", str(config)) as address:
        tab = Tab(browser, f"{address}/?charts=grad_norm~reward_mean")
        tab.painted()
        card = CARD.format("grad_norm")
        tab.wait(f"{card}.lines.get('r')?.y.length > 100")
        line = tab.js(
            f"(() => {{ const l = {card}.lines.get('r'); const i = l.y.indexOf(Math.max(...l.y)); return [l.x[i], l.y[i], l.x.length] }})()"
        )
        assert line[:2] == [spike, monitor_logs.SPIKE_VALUE]
        assert line[2] < 4000
        # and it is painted: the curve's highest pixel lies at the spike's x
        shown = tab.js(
            f"(() => {{ const p = {card}.plot, a = p._fullLayout.xaxis, y = p._fullLayout.yaxis;"
            " const d = p.querySelector('.scatterlayer path.js-line').getAttribute('d').match(/-?[\\d.]+/g).map(Number);"
            " let best = [0, 1e9]; for (let i = 0; i + 1 < d.length; i += 2) if (d[i + 1] < best[1]) best = [d[i], d[i + 1]];"
            f" return [best[0], a.d2p({spike}), best[1], y.d2p(1000)] }})()"
        )
        assert abs(shown[0] - shown[1]) < 3
        tab.shot("spike")
        # zoom with the mouse, then let the run grow through twenty refreshes
        box = tab.page.locator("[data-metric='grad_norm'] .nsewdrag").bounding_box()
        tab.page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 40)
        tab.page.mouse.down()
        tab.page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 45, steps=5)
        tab.page.mouse.up()
        tab.wait("Object.keys(window.vtPanel.app.state.zoom).length === 1")
        zoom = tab.js(f"{card}.plot._fullLayout.xaxis.range")
        assert zoom[1] - zoom[0] < 50_000
        tab.js(f"window.zoomed = {card}.plot")
        tab.wait(f"{card}.lines.get('r').x.length > 200")
        polls = tab.js("window.vtPanel.app.sequence")
        step = 100_000
        end = time.monotonic() + 60
        while tab.js("window.vtPanel.app.sequence") < polls + 20 and time.monotonic() < end:
            step += 1
            monitor_logs.append_line(log, step)
            tab.page.wait_for_timeout(100)
        assert tab.js("window.vtPanel.app.sequence") >= polls + 20
        assert tab.js(f"{card}.plot._fullLayout.xaxis.range") == zoom
        assert tab.js(f"window.zoomed === {card}.plot && window.zoomed.isConnected")
        assert tab.js(f"{CARD.format('reward_mean')}.lines.get('r').x.at(-1)") >= step - 20
        assert "zoom=grad_norm" in tab.page.url
        tab.shot("zoomed")
        again = Tab(browser, tab.page.url)  # the link restores the view
        again.painted()
        again.wait(f"Boolean({card}?.drawn)")
        assert again.js(f"{card}.plot._fullLayout.xaxis.range") == pytest.approx(zoom, rel=1e-4)
        again.close()
        tab.close()


def test_page_opened_before_gradio_is_ready_goes_on(tmp_path: Path, browser: Any) -> None:
    folder = make_run(tmp_path / "logs" / "r", state="running", total=100)
    with panel(tmp_path / "logs", wait_for_gradio=False) as address:
        tab = Tab(browser, address)
        assert tab.page.locator("#vt-panel").count() == 1  # the door's own page
        tab.painted()
        tab.page.wait_for_timeout(8000)  # Gradio has taken over meanwhile
        with (folder / "metrics-1.jsonl").open("a") as out:
            out.write(jsonl([(21, {"critic/score/mean": 0.5})]))
        tab.wait(f"{CARD.format('reward_mean')}.lines.get('r').x.at(-1) === 21")
        tab.close()


def test_runs_come_and_go_and_samples_are_only_text(tmp_path: Path, browser: Any) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    with panel(logs) as address:
        tab = Tab(browser, address)
        tab.page.get_by_text("No runs here yet").wait_for()
        tab.shot("empty")
        folder = make_run(logs / "grpo" / "one", state="running", total=50)
        evil = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
        rows = [
            sample(5, f"{evil} {p}", i, float(i % 2), f"**{evil}** 答案 {i}.")
            for p in range(3)
            for i in range(4)
        ]
        write(folder / "rollouts" / "5.jsonl", "".join(rows))
        tab.page.locator("[data-run='grpo/one']").wait_for(timeout=30_000)
        tab.painted()
        tab.page.get_by_role("button", name="Samples").first.click()
        tab.page.get_by_text("答案 3.").first.wait_for()
        assert tab.page.get_by_text(evil).first.is_visible()
        tab.page.get_by_placeholder("text in prompt or answer").fill("答案 2")
        tab.wait("window.vtPanel.app.panes.samples.dataset.matched === '3'")
        assert tab.js("window.hacked") is None
        tab.shot("samples")
        tab.page.get_by_role("button", name="Health").click()
        tab.page.get_by_text("one").nth(0).wait_for()
        tab.page.get_by_role("button", name="GPU").click()
        tab.page.get_by_text("This host, now").wait_for()
        tab.page.get_by_role("button", name="Runs").click()
        tab.page.get_by_text("Settings compared").wait_for()
        assert "sk-verysecret" not in tab.page.content()
        tab.page.get_by_role("button", name="Curves").click()
        shutil.rmtree(folder)
        tab.page.locator(".vt-s-deleted").wait_for(timeout=30_000)
        tab.shot("deleted")
        # one poll may meet the folder half removed; nothing may reach the console but what is asserted here
        tab.close()


def test_click_on_a_point_opens_its_samples(tmp_path: Path, browser: Any) -> None:
    folder = make_run(tmp_path / "logs" / "r", steps=12)
    for step in (4, 8, 12):
        write(folder / "rollouts" / f"{step}.jsonl", sample(step, "p", 0, 1.0, f"from step {step}."))
    with panel(tmp_path / "logs") as address:
        tab = Tab(browser, address)
        tab.painted()
        card = CARD.format("reward_mean")
        tab.wait(f"{card}?.lines.get('r')?.x.length === 12")
        box = tab.page.locator("[data-metric='reward_mean'] .nsewdrag").bounding_box()
        at = tab.js(
            f"[{card}.plot._fullLayout.xaxis.d2p(8), {card}.plot._fullLayout.yaxis.d2p({card}.lines.get('r').y[7])]"
        )
        tab.page.mouse.move(box["x"] + at[0] - 2, box["y"] + at[1])
        tab.page.mouse.move(box["x"] + at[0], box["y"] + at[1])
        tab.page.locator("[data-metric='entropy'] .vt-hair").wait_for()  # the same step, marked in the others
        tab.page.mouse.down()
        tab.page.mouse.up()
        tab.page.get_by_text("from step 8.").wait_for(timeout=10_000)
        assert "tab=samples" in tab.page.url or tab.js("window.vtPanel.app.state.sample.step") == 8
        tab.close()


def test_step_of_2560_samples_is_usable(tmp_path: Path, browser: Any) -> None:
    folder = make_run(tmp_path / "logs" / "r")
    text = "Let me think step by step. " * 180
    rows = [
        sample(1, f"prompt {p}", i, float(i == p % 8), f"{text} {p}-{i}.")
        for p in range(320)
        for i in range(8)
    ]
    write(folder / "rollouts" / "1.jsonl", "".join(rows))
    with panel(tmp_path / "logs") as address:
        tab = Tab(browser, f"{address}/?tab=samples")
        tab.wait("window.vtPanel?.app?.panes?.samples?.dataset.matched === '2560'", 60)
        tab.page.get_by_placeholder("text in prompt or answer").fill("319-7")
        tab.wait("window.vtPanel.app.panes.samples.dataset.matched === '1'")
        assert tab.page.locator(".vt-answer mark").all_inner_texts() == ["319-7"]
        tab.close()


def test_memory_of_an_open_page_stays(tmp_path: Path, browser: Any) -> None:
    """Five minutes of refreshes at 2 s, as fast as they come: what a page keeps, it keeps per refresh.

    The half hour of benchmarks/monitor_load.py (--heap-minutes 30) may grow by 50 MB; this is its sixth.
    """
    logs = tmp_path / "logs"
    for i in range(10):
        monitor_logs.write_jsonl(logs / f"run{i}" / "metrics-1.jsonl", i, 3000)
    with panel(logs, "--config", str(fast_refresh(tmp_path, 0.1))) as address:
        tab = Tab(browser, f"{address}/?runs={'~'.join(f'run{i}' for i in range(10))}")
        tab.painted()
        card = CARD.format("reward_mean")
        tab.wait(f"{card}.lines.size === 10")
        _, grown = heap_growth(
            tab.page, logs, 3000, 150, lambda step: tab.wait(f"{card}.lines.get('run9').x.at(-1) === {step}")
        )
        assert grown < 50 / 6
        tab.close()


@pytest.mark.e2e
def test_a_real_cpu_run_is_followed_from_first_to_last_step(tmp_path: Path, browser: Any) -> None:
    """grpo/train.sh on CPU, watched live in the page until it has finished."""
    with panel(tmp_path / "outputs" / "logs") as address:
        tab = Tab(browser, address)
        log = tmp_path / "train.log"  # a pipe that nobody reads would fill up and stop the run
        flags = ("--smoke", "--output_dir", str(tmp_path / "outputs"), "--experiment_name", "live")
        with log.open("wb") as file:
            run = subprocess.Popen(
                ["bash", str(ROOT / "grpo" / "train.sh"), *flags],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "DEVICE": "cpu"},
            )
        try:
            seen: list[int] = []
            states: list[str] = []
            end = time.monotonic() + 1200
            while time.monotonic() < end:
                entry = tab.js(
                    "[...(window.vtPanel?.app?.runs?.values() ?? [])].find((run) => run.id.endsWith('live')) ?? null"
                )
                if entry:
                    if entry["step"] not in seen:
                        seen.append(entry["step"])
                    if entry["state"] not in states:
                        states.append(entry["state"])
                    if entry["state"] in ("finished", "failed"):
                        break
                tab.page.wait_for_timeout(500)
            run.wait(timeout=120)
        finally:
            run.terminate()
            run.wait(timeout=60)
        output = log.read_text(errors="replace")
        assert run.returncode == 0, output[-3000:]
        assert states[-1] == "finished", (states, output[-2000:])
        assert "running" in states
        total = entry["total"]
        assert set(range(1, total + 1)) <= set(seen)
        tab.painted()
        folder = tmp_path / "outputs" / "logs" / "grpo" / "live"
        written = [
            json.loads(line)
            for log in sorted(folder.glob("metrics-*.jsonl"))
            for line in log.read_bytes().splitlines()
        ]
        scores = [
            (row["step"], row["data"]["critic/score/mean"])
            for row in written
            if "critic/score/mean" in row["data"]
        ]
        tab.wait(f"{CARD.format('reward_mean')}?.lines.values().next().value?.x.length === {len(scores)}")
        line = tab.js(
            f"(() => {{ const l = {CARD.format('reward_mean')}.lines.values().next().value; return [...l.x].map((x, i) => [x, l.y[i]]) }})()"
        )
        assert [point[0] for point in line] == [step for step, _ in scores]
        assert [point[1] for point in line] == pytest.approx([value for _, value in scores], rel=1e-5)
        tab.shot("live_run")
        tab.page.get_by_role("button", name="Samples").first.click()
        tab.page.locator(".vt-answer").first.wait_for(timeout=20_000)
        tab.shot("live_samples")
        tab.close()
