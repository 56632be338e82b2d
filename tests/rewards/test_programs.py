"""The code reward, on the local sandbox and on a server that speaks Sandbox Fusion's API."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from common.reward_functions import RewardError, registry
from common.reward_functions.programs import code, extract_code, read_tests
from common.reward_functions.sandbox import Limits, SandboxError, fusion, host, run_python, status

DOUBLE = "```python\ndef f(x):\n    return 2 * x\n```"


@pytest.mark.parametrize(
    ("response", "source"),
    [
        ("```python\na = 1\n```", "a = 1\n"),
        ("first ```py\na\n``` then\n```python\nb\n```", "b\n"),
        ("```\na = 1\n```", "a = 1\n"),
        ("```python\na = 1", "a = 1"),
        ("<think>```python\na\n```</think>", None),
        ("a = 1\nprint(a)", "a = 1\nprint(a)"),
        ("```bash\nls\n```", None),
        ("This is no program.", None),
        ("", None),
    ],
)
def test_extract_code(response: str, source: str | None) -> None:
    assert extract_code(response) == source


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        (DOUBLE, ["assert f(2) == 4", "assert f(-1) == -2"], 1.0),
        (DOUBLE, "assert f(2) == 4\nassert f(3) == 6", 1.0),
        (DOUBLE, json.dumps({"test_list": ["assert f(2) == 4"]}), 1.0),
        (DOUBLE, ["assert f(2) == 5"], 0.0),
        (DOUBLE, ["assert f([1]) == [1, 1]", "assert abs(f(0.1) - 0.2) < 1e-9", "assert f(1) != 3"], 1.0),
        (DOUBLE, {"test_list": ["assert math.isclose(f(1), 2)"], "setup": "import math"}, 1.0),
        (DOUBLE, {"fn_name": "f", "inputs": [[2], [3]], "outputs": [4, 6]}, 1.0),
        (DOUBLE, {"fn_name": "f", "inputs": ["2", "3"], "outputs": ["4", "7"]}, 0.0),
        ("```python\nclass Solution:\n    def f(self, x):\n        return (x, 1)\n```",
         {"fn_name": "f", "inputs": [[2]], "outputs": [[2, 1]]}, 1.0),
        ("```python\ndef f(x):\n    print('noise'); return x\n```", ["assert f(1) == 1"], 1.0),
        ("```python\ndef f(x):\n    return True\n```", ["assert f(1) == 1"], 0.0),
        ("```python\ndef f(x):\n    return 0.1 + 0.2\n```", ["assert f(1) == 0.3"], 1.0),
        ("```python\ndef f(x)\n```", ["assert f(1) == 1"], 0.0),
        ("```python\ndef g(x): return x\n```", ["assert f(1) == 1"], 0.0),
        ("```python\nn = int(input())\nprint(n * 2, n / 3)\n```",
         {"inputs": ["3\n", "1"], "outputs": ["6 1.0", "2 0.333333333"]}, 1.0),
        ("```python\nprint(input()[::-1])\n```", {"inputs": ["ab"], "outputs": ["ab"]}, 0.0),
        ("```python\nprint('一')\n```", {"inputs": [""], "outputs": ["一\n\n"]}, 1.0),
        ("no code", ["assert f(1) == 1"], 0.0),
    ],
)  # fmt: skip
def test_verdicts(answer: str, truth: Any, score: float) -> None:
    assert code(solution_str=answer, ground_truth=truth)["score"] == score


def test_partial_credit_and_reason() -> None:
    result = code(solution_str=DOUBLE, ground_truth=["assert f(1) == 2", "assert f(1) == 3"], partial=True)
    assert result["score"] == 0.5
    assert result["reason"] == "1 of 2 tests passed; f(1) gave 2"
    streams = {"inputs": ["1", "2", "3"], "outputs": ["1", "0", "3"]}
    result = code(solution_str="```python\nprint(input())\n```", ground_truth=streams, partial=True)
    assert result["passed"] == pytest.approx(2 / 3)


def test_a_cheating_program_gains_nothing() -> None:
    cheats = (
        "import os; print('ok'); os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "class Always:\n    def __eq__(self, other): return True\n    def __repr__(self): return 'x'\n"
        "def f(x): return Always()",
        "import builtins\nbuiltins.repr = lambda value: '4'\ndef f(x): return 5",
        'import json\njson.dumps = lambda line: \'["value", "4"]\'\ndef f(x): return 4',
    )
    scores = [
        code(solution_str=f"```python\n{cheat}\n```", ground_truth=["assert f(2) == 4", "assert f(3) == 6"])[
            "score"
        ]
        for cheat in cheats
    ]
    assert scores == [0.0] * len(cheats)


def test_an_endless_solution_ends_at_its_limit() -> None:
    result = code(
        solution_str="```python\nwhile True: pass\n```", ground_truth=["assert f(1) == 1"], wall_seconds=1.0
    )
    assert result["score"] == 0.0
    streams = {"inputs": ["1"] * 50, "outputs": ["1"] * 50}
    result = code(
        solution_str="```python\nwhile True: pass\n```",
        ground_truth=streams,
        wall_seconds=0.5,
        total_seconds=1.0,
        partial=True,
    )
    assert "test 1" in result["reason"]


def test_truths_without_tests_are_refused() -> None:
    for truth in (3, {}, [], "", {"inputs": [], "outputs": []}):
        with pytest.raises(RewardError):
            read_tests(truth)


def test_packages_are_importable_only_when_asked_for() -> None:
    program = "import yaml; print('yes')"
    assert run_python(program).status == "exit"
    patient = Limits(
        wall_seconds=60.0, cpu_seconds=60
    )  # the import of site-packages is slow on a busy machine
    assert run_python(program, limits=patient, packages=True).stdout == "yes\n"


def test_nothing_is_left_in_the_temporary_folder() -> None:
    before = set(Path(tempfile.gettempdir()).glob("reward-sandbox-*"))
    run_python("open('left', 'w').write('x')")
    run_python("while True: pass", limits=Limits(wall_seconds=0.3))
    assert set(Path(tempfile.gettempdir()).glob("reward-sandbox-*")) <= before


def test_status_names_every_guard() -> None:
    for namespaces in (True, False):
        guards = status(namespaces)
        assert set(guards) >= {
            "namespaces",
            "file access",
            "system calls",
            "network",
            "identity",
            "processes",
            "limits",
        }
        assert all(text.startswith(("on", "OFF")) for text in guards.values())


def test_a_sandbox_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "guard.py"
    broken.write_text("import os, sys\nos.write(int(sys.argv[2]), b'no such guard')\n")
    monkeypatch.setattr(host, "_GUARD", broken)
    for namespaces in (True, False):
        with pytest.raises(SandboxError, match="the code sandbox could not be set up: no such guard"):
            run_python("print(1)", namespaces=namespaces)


def test_without_working_namespaces_the_other_guards_are_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = tmp_path / "guard.py"
    source = host._GUARD.read_text(encoding="utf-8")
    head, body = source.split("def private_folder(", 1)
    guard.write_text(
        f"{head}def private_folder(*_):\n    raise PermissionError('no mount')\n\ndef unused({body}"
    )
    monkeypatch.setattr(host, "_GUARD", guard)
    host._probe.cache_clear()
    try:
        assert run_python("print(1)").stdout == "1\n"
    finally:
        host._probe.cache_clear()
    assert "code sandbox: namespaces: OFF" in capsys.readouterr().err
    with pytest.raises(SandboxError, match="no mount"):
        run_python("print(1)", namespaces=True)


class Fusion(BaseHTTPRequestHandler):
    """Sandbox Fusion's /run_code for Python, run as a plain process; fails as often as `failures` says."""

    failures: list[int] = []  # noqa: RUF012 (set by the tests)
    seen: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, **body})
        if self.failures:
            self.send_error(self.failures.pop())
            return
        with tempfile.TemporaryDirectory() as folder:
            for name, text in body["files"].items():
                Path(folder, name).write_bytes(base64.b64decode(text))
            Path(folder, "main.py").write_text(body["code"])
            run: dict[str, Any]
            try:
                done = subprocess.run(
                    [sys.executable, "-I", "main.py"], cwd=folder, input=body["stdin"], capture_output=True,
                    text=True, check=False, timeout=body["run_timeout"],
                )  # fmt: skip
                run = {
                    "status": "Finished",
                    "return_code": done.returncode,
                    "stdout": done.stdout,
                    "stderr": done.stderr,
                }
            except subprocess.TimeoutExpired:
                run = {"status": "TimeLimitExceeded", "return_code": None, "stdout": "", "stderr": ""}
        good = run["return_code"] == 0
        answer = {
            "status": "Success" if good else "Failed",
            "message": "",
            "compile_result": None,
            "run_result": run,
        }
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def fusion_url() -> Iterator[str]:
    """A local Sandbox Fusion."""
    Fusion.failures, Fusion.seen = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Fusion) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_sandbox_fusion_gives_the_same_verdicts(fusion_url: str) -> None:
    for case in registry.get("code").examples:
        result = code(
            solution_str=case.answer, ground_truth=case.truth, sandbox_url=fusion_url, **case.kwargs
        )
        assert result["score"] == case.score
    assert {call["path"] for call in Fusion.seen} == {"/run_code"}
    assert {call["language"] for call in Fusion.seen} == {"python"}
    slow = code(
        solution_str="```python\nwhile True: pass\n```",
        ground_truth=["assert f(1) == 1"],
        wall_seconds=0.5,
        sandbox_url=fusion_url,
    )
    assert slow["score"] == 0.0


def test_sandbox_fusion_is_tried_again_and_then_reported(
    fusion_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion, "FIRST_PAUSE", 0.01)
    Fusion.failures = [504, 503]
    assert fusion.run_python(f"{fusion_url}/run_code", "print(3)").stdout == "3\n"
    Fusion.failures = [500] * fusion.ATTEMPTS
    with pytest.raises(SandboxError, match=r"/run_code failed: HTTP 500"):
        fusion.run_python(fusion_url, "print(3)")
    with pytest.raises(SandboxError, match="must start with http"):
        fusion.run_python("file:///etc/passwd", "print(3)")
    with pytest.raises(SandboxError, match=r"failed: .*refused"):
        fusion.run_python("http://127.0.0.1:9", "print(3)")
