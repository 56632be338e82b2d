"""A process started by fork must be told apart from one started by the interpreter by its speed alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from common.cpu import forkserver

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = ROOT / "common" / "cpu" / "fork_python.sh"
TELL = """
import json, os, sys
print(json.dumps({"argv": sys.argv, "path0": sys.path[0], "cwd": os.getcwd(), "mine": os.environ.get("MINE"),
    "stdin": sys.stdin.read(), "name": __name__, "main": sys.modules["__main__"].__name__,
    "forked": "vllm" in sys.modules}))
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def socket_path() -> Iterator[str]:
    """A running fork server; yields its socket."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/fork"
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        server = subprocess.Popen(
            [sys.executable, "-m", "common.cpu.forkserver", path, str(os.getpid())], env=environment, cwd=ROOT
        )
        while not Path(path).exists():
            assert server.poll() is None, "it did not start"
            time.sleep(0.05)
        yield path
        server.terminate()
        assert server.wait(timeout=10) == -signal.SIGTERM, "it had ended before"


def environment(path: str, **more: str) -> dict[str, str]:
    names = {
        "VERL_TRAINING_FORK_PYTHON": sys.executable,
        "VERL_TRAINING_FORK_SOCKET": path,
        "PYTHONPATH": str(ROOT),
    }
    return {**os.environ, **names, **more}


def start(path: str, *words: str, **more: str) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([STAND_IN, *words], env=environment(path, **more), cwd="/", text=True, **pipes)


def run(path: str, *words: str, given: str = "", **more: str) -> tuple[int, str, str]:
    process = start(path, *words, **more)
    out, err = process.communicate(given, timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize("form", ["script", "code", "module"])
def test_looks_like_the_interpreter(form: str, socket_path: str, tmp_path: Path) -> None:
    script = tmp_path / "tell me.py"
    script.write_text(TELL)
    words = {"script": [str(script)], "code": ["-X", "utf8", "-c", TELL], "module": ["-m", "tell"]}[form]
    (tmp_path / "tell.py").write_text(TELL)
    more = {"MINE": "a b'\"$ü", "PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def told(by: list[str]) -> dict:
        done = subprocess.run(
            [*by, *words, "one", "two words"], env=environment(socket_path, **more), cwd="/", input="given",
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        return json.loads(done.stdout)

    forked, plain = told([str(STAND_IN)]), told([sys.executable])
    assert forked.pop("forked") is True and plain.pop("forked") is False
    if form == "module":  # runpy puts the folder of `-m` there, which is the one we are in
        del forked["path0"], plain["path0"]
    assert forked == plain


def test_exit_code_error_and_signal_are_handed_on(socket_path: str) -> None:
    assert run(socket_path, "-c", "import sys; sys.exit(7)")[0] == 7
    code, _, err = run(socket_path, "-c", "raise ValueError('told')")
    assert code == 1 and "ValueError: told" in err
    assert (
        run(socket_path, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")[0]
        == -signal.SIGKILL
    )


def test_a_signal_reaches_the_child(socket_path: str) -> None:
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(42)); print('ready', flush=True); signal.pause()"
    process = start(socket_path, "-c", code)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(timeout=30) == 42


def test_killed_client_takes_its_child_with_it(socket_path: str) -> None:
    process = start(socket_path, "-c", "import os, signal; print(os.getpid(), flush=True); signal.pause()")
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    process.kill()
    assert child.wait(timeout=30) is None or not child.is_running()


def test_children_draw_different_numbers(socket_path: str) -> None:
    code = "import numpy, random; print(numpy.random.rand(), random.random())"
    first, second = (run(socket_path, "-c", code)[1].split() for _ in range(2))
    assert first[0] != second[0] and first[1] != second[1]


def test_multiprocessing_spawns_through_it(socket_path: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        f"import multiprocessing, sys\n"
        f"def child(pipe): pipe.send(('vllm' in sys.modules, sys.argv))\n"
        f"if __name__ == '__main__':\n"
        f"    multiprocessing.set_executable({str(STAND_IN)!r})\n"
        f"    here, there = multiprocessing.get_context('spawn').Pipe()\n"
        f"    worker = multiprocessing.get_context('spawn').Process(target=child, args=(there,))\n"
        f"    worker.start(); print(here.recv()); worker.join(); sys.exit(worker.exitcode)\n"
    )
    done = subprocess.run(
        [sys.executable, script, "word"], env=environment(socket_path), capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout == f"(True, {[str(script), 'word']})\n"


def test_without_a_server_it_is_the_interpreter(tmp_path: Path) -> None:
    assert run(str(tmp_path / "nobody"), "-c", "import sys; print('vllm' in sys.modules); sys.exit(3)")[
        :2
    ] == (3, "False\n")
    assert run("", "-c", "print(1)")[1] == "1\n"


def test_a_thread_that_a_fork_would_lose_is_named() -> None:
    code = (
        "import threading, time; from common.cpu import forkserver;"
        "threading.Thread(target=time.sleep, args=(5,), daemon=True).start(); print(len(forkserver.unsafe_threads()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 1
    assert "ray" not in forkserver.PRELOAD
