# ruff: noqa: E501  (tables of cases read better on one line)
"""The program itself: options, login, what can and cannot be read, --check, the GPU sampler."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from monitor_fixtures import ROOT, jsonl, make_run, sample, write

from monitor import app

APP = [sys.executable, str(ROOT / "monitor" / "app.py")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def panel(logs: Path, *options: str, wait_for_gradio: bool = True) -> Iterator[str]:
    """A running panel; yields its address."""
    port = free_port()
    cache = logs.parent / "panel-cache"
    process = subprocess.Popen(
        [*APP, "--log_dir", str(logs), "--port", str(port), *options],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)}, cwd=ROOT / "monitor", stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            if process.poll() is not None:
                raise AssertionError(f"the panel ended: {process.communicate()[0]}")
            status = fetch(address + ("/config" if wait_for_gradio else "/"))[0]
            if status in (200, 401):
                break
            time.sleep(0.1)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
        assert "Traceback" not in output, output


def fetch(url: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def component_call(address: str, name: str, body: Any) -> tuple[int, bytes]:
    """Call a server function the way gr.HTML does."""
    config = json.loads(fetch(address + "/config")[1])
    (component,) = [c["id"] for c in config["components"] if c["type"] == "html"]
    return fetch(
        f"{address}/gradio_api/component_server",
        {"data": body, "component_id": component, "fn_name": name, "session_hash": "x"},
    )


def arguments(*words: str) -> Any:
    return app.parse_arguments(list(words))


def test_other_hosts_need_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(app.AUTH_VARIABLE, raising=False)
    assert app.login(arguments()) is None
    with pytest.raises(app.UsageError, match="--auth USER:PASS"):
        app.login(arguments("--host", "0.0.0.0"))
    assert app.login(arguments("--host", "0.0.0.0", "--no-auth")) is None
    assert app.login(arguments("--host", "0.0.0.0", "--auth", "me:a:b")) == ("me", "a:b")
    monkeypatch.setenv(app.AUTH_VARIABLE, "you:secret")
    assert app.login(arguments("--host", "0.0.0.0")) == ("you", "secret")


@pytest.mark.parametrize("text", ["me", "me:", ":x", ":"])
def test_malformed_login_is_refused(text: str) -> None:
    with pytest.raises(app.UsageError, match="USER:PASS"):
        app.login(arguments("--auth", text))


def test_port_in_use_names_a_free_one(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert app.main(["--port", str(port), "--log_dir", str(ROOT)]) == 2
    message = capsys.readouterr().err
    assert f"port {port} is in use; port" in message
    free = int(message.rsplit("--port ", 1)[1])
    app.listen("127.0.0.1", free).close()


def test_bad_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--config", str(tmp_path / "none.yaml")]) == 2
    assert app.main(["--host", "256.1.1.1", "--no-auth", "--port", "0"]) == 2
    assert app.main(["--port", "99999"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("monitor: ") for line in lines)


def check(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*APP, "--check", *words], capture_output=True, text=True, cwd=ROOT / "monitor", check=False
    )


def test_check_reports_and_sets_the_exit_code(tmp_path: Path) -> None:
    make_run(tmp_path / "well")
    good = check(str(tmp_path))
    assert good.returncode == 0, good.stdout + good.stderr
    assert "well: grpo finished, step 20/20" in good.stdout
    write(
        tmp_path / "ill" / "metrics-1.jsonl",
        jsonl([(s, {"actor/kl_loss": 0.5}) for s in range(1, 30)]) + "bad\n",
    )
    bad = check(str(tmp_path), "--lang", "zh")
    assert bad.returncode == 1
    assert "策略远离参考模型" in bad.stdout
    assert "1 lines skipped" in bad.stdout
    assert bad.stderr == ""


@pytest.mark.parametrize("make", [False, True])
def test_check_without_runs(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "logs"
    if make:
        folder.mkdir()
    done = check(str(folder))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_page_door_and_gradio_serve_the_same_and_nothing_else(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.txt", "TOPSECRET")
    logs = tmp_path / "logs"
    make_run(logs / "r")
    write(logs / "r" / "rollouts" / "1.jsonl", sample(1, "p", 0, 1.0))
    with panel(logs) as address:
        status, page = fetch(address + "/")
        assert status == 200
        assets = set(re.findall(r"/panel/\w+/[\w.]+", page.decode()))
        assert {name.rsplit("/", 1)[1] for name in assets} >= {
            "panel.js",
            "panel.css",
            "plotly.min.js",
            "charts.js",
        }
        assert len({name.rsplit("/", 1)[0] for name in assets}) == 1  # the version: an update brings all anew
        for name in assets:
            assert fetch(address + name)[0] == 200
        assert fetch(f"{address}/panel/000000000000/panel.js")[0] == 404
        poll = {"session": "s", "view": {"runs": ["r"], "charts": [{"id": "a", "metric": "actor/pg_loss"}]}}
        early = json.loads(fetch(address + "/panel/api/poll", poll)[1])
        through = json.loads(component_call(address, "poll", {**poll, "session": "t"})[1])
        assert early["lines"] == through["lines"]
        everything = b""
        for path in (
            f"/gradio_api/file={secret}", "/gradio_api/file=../secret.txt", f"/file={secret}", "/panel/../secret.txt",
            f"/gradio_api/file={logs / 'r' / 'run.json'}", "/panel/..%2f..%2fREADME.md", "/panel/app.py",
            "/static/../../../../secret.txt", f"/gradio_api/file={ROOT / 'monitor' / 'app.py'}",
            "/gradio_api/file=http://127.0.0.1:1/", "/gradio_api/proxy=http://127.0.0.1:1/",
        ):  # fmt: skip
            status, body = fetch(address + path)
            assert status in (400, 403, 404), path
            everything += body
        assert fetch(address + "/gradio_api/upload", {})[0] == 403
        for body in ({"run": "../outside"}, {"run": str(secret)}, {"run": "r", "kind": "results", "step": 0}):
            everything += component_call(address, "samples", body)[1]
        assert b"TOPSECRET" not in everything
        assert b"sk-verysecret" not in component_call(address, "compare", {"runs": ["r"]})[1]
        # another site's page, and a name that resolves to this machine
        assert fetch(address + "/panel/api/boot", {}, Origin="http://evil.example")[0] == 403
        assert fetch(address + "/", Host="evil.example")[0] == 403
        assert fetch(address + "/panel/api/nothing", {})[0] == 404
        status, reply = fetch(
            address + "/panel/api/samples", {"run": "r", "filter": {"text": "(", "regex": True}}
        )
        assert json.loads(reply)["error"].startswith("not a regular expression")


@pytest.mark.slow
def test_login_guards_every_function(tmp_path: Path) -> None:
    make_run(tmp_path / "logs" / "r")
    with panel(tmp_path / "logs", "--auth", "me:pw") as address:
        assert fetch(address + "/panel/api/boot", {})[0] == 404
        assert fetch(address + "/config")[0] == 401
        body = {"data": {}, "component_id": 1, "fn_name": "boot", "session_hash": "x"}
        assert fetch(address + "/gradio_api/component_server", body)[0] == 401


@pytest.mark.slow
def test_missing_folder_is_shown_and_then_filled(tmp_path: Path) -> None:
    logs = tmp_path / "later"
    with panel(logs, "--root-path", "/mon", wait_for_gradio=False) as address:
        view = {"session": "s", "view": {"runs": [], "charts": []}}
        first = json.loads(fetch(address + "/mon/panel/api/poll", view)[1])
        assert first["list"]["runs"] == []
        make_run(logs / "r")
        end = time.monotonic() + 20
        while time.monotonic() < end:
            reply = json.loads(
                fetch(address + "/panel/api/poll", {**view, "view": {**view["view"], "fresh": True}})[1]
            )
            if reply["list"]["runs"]:
                break
            time.sleep(0.3)
        assert [entry["id"] for entry in reply["list"]["runs"]] == ["r"]
        style = re.search(rb"/mon/panel/\w+/panel.css", fetch(address + "/mon/")[1])
        assert style is not None and fetch(address + style.group().decode())[0] == 200


@pytest.mark.slow
def test_two_panels_on_one_directory(tmp_path: Path) -> None:
    make_run(tmp_path / "logs" / "r")
    with (
        panel(tmp_path / "logs", wait_for_gradio=False) as one,
        panel(tmp_path / "logs", wait_for_gradio=False) as two,
    ):
        for address in (one, two):
            end = time.monotonic() + 20
            runs: list[Any] = []
            while not runs and time.monotonic() < end:
                body = {"session": "s", "view": {"runs": [], "charts": [], "fresh": True}}
                runs = json.loads(fetch(address + "/panel/api/poll", body)[1])["list"]["runs"]
            assert [entry["id"] for entry in runs] == ["r"]


def test_gpu_sampler_writes_until_its_parent_ends(tmp_path: Path) -> None:
    write(tmp_path / "metrics-1.jsonl", '{"step":3,"data":{}}\n{"step":4,"data":{}}\n{"step":')
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3)"])
    out = tmp_path / "gpu.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "common.gpu_sampler", "--out", str(out), "--interval", "0.2", "--parent", str(parent.pid)],
        cwd=ROOT, timeout=60, capture_output=True, text=True, check=False,
    )  # fmt: skip
    parent.wait()
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows
    assert {row["step"] for row in rows} == {4}
    assert all(row["ram_used"] > 0 and isinstance(row["gpus"], list) and row["cpu"] >= 0 for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "{dir}/x/gpu.jsonl"], "cannot write"),
        (["--out", "{dir}/gpu.jsonl", "--parent", "4194303"], "no process with id 4194303"),
        (["--out", "{dir}/gpu.jsonl", "--interval", "0"], "above 0 seconds"),
    ],
)
def test_gpu_sampler_refuses_in_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    words = [word.format(dir=tmp_path) for word in options]
    done = subprocess.run(
        [sys.executable, "-m", "common.gpu_sampler", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
