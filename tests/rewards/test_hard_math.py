"""The pool behind math: threads, time, memory, and no process left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.reward_functions.hard_math import HardMath, UndecidedError
from common.reward_functions.mathematics import math

ROOT = Path(__file__).parents[2]
PATHOLOGICAL = Path(__file__).with_name("pathological.txt").read_text(encoding="utf-8").splitlines()


def test_works_in_threads(hard_math: HardMath) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda n: hard_math.equal(f"(x+{n})^2", f"x^2+{2 * n}x+{n * n}", 10.0), range(24))
        )
    assert answers == [True] * 24


def test_slow_algebra_is_ended_in_time_and_the_next_call_works(hard_math: HardMath) -> None:
    for expression in ("10^{10^{10}}", "2^{3^{4^{5^{6}}}}", "9999999!"):
        begin = time.perf_counter()
        result = math(solution_str=rf"\boxed{{{expression}}}", ground_truth="x^2", time_limit=0.5)
        assert time.perf_counter() - begin < 1.0
        assert result["score"] == 0.0
    assert math(solution_str=r"\boxed{\sqrt{4}+x}", ground_truth="x+2")["score"] == 1.0


@pytest.mark.slow
def test_pathological_latex_never_exceeds_its_limit(hard_math: HardMath) -> None:
    limit = 0.25
    for expression in PATHOLOGICAL:
        begin = time.perf_counter()
        math(solution_str=rf"\boxed{{{expression}}}", ground_truth=r"\frac{\pi}{7}", time_limit=limit)
        assert time.perf_counter() - begin < limit + 0.5, expression[:80]


def test_killed_workers_are_replaced() -> None:
    pool = HardMath(workers=1)
    try:
        assert pool.equal("x+1", "1+x", 10.0)
        worker = pool._idle.get()
        assert worker is not None
        os.kill(worker.pid, 9)
        pool._idle.put(worker)
        with pytest.raises(UndecidedError):
            pool.equal("x+1", "1+x", 10.0)
        assert pool.equal("x+1", "1+x", 10.0)
        assert pool._parent is not None
        pool._parent.kill()
        pool._parent.wait()
        worker = pool._idle.get()
        assert worker is not None
        worker.close()
        pool._idle.put(None)
        assert pool.equal("x+1", "1+x", 10.0)
    finally:
        pool.close()


def test_nothing_is_left_when_the_owner_is_killed() -> None:
    program = (
        "from common.reward_functions.hard_math import HardMath; import sys, time\n"
        "pool = HardMath(1); pool.equal('x+1', '1+x', 10.0)\n"
        "worker = pool._idle.get(); print(pool._parent.pid, worker.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pids = [int(word) for word in owner.stdout.readline().split()]
        owner.kill()
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
