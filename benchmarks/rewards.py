"""Rewards: speed beside math-verify alone, time bounds, sandbox throughput, the wrapper's own cost.

    python benchmarks/rewards.py                 # every claim, a minute; exit code 1 if one is missed
    python benchmarks/rewards.py --only sandbox

Every ratio is measured against the peer in the same process and run, on the same pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.reward_functions import bind  # noqa: E402 (run as a script: the repository is not installed)
from common.reward_functions.hard_math import HardMath  # noqa: E402
from common.reward_functions.mathematics import math  # noqa: E402
from common.reward_functions.sandbox import run_python  # noqa: E402
from common.reward_functions.training import TrainingReward  # noqa: E402

PATHOLOGICAL = ROOT / "tests" / "rewards" / "pathological.txt"
LIMIT = 1.0  # seconds, for the pathological corpus
LATE = 0.05  # seconds a call may return after its limit: scheduling on a shared machine


def alone(answer: str, gold: str) -> bool:
    """The peer: math-verify as its README uses it."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${gold}$"), parse(answer)))


def ours(answer: str, gold: str) -> bool:
    """The math reward at its defaults."""
    return bool(math(solution_str=answer, ground_truth=gold)["score"])


def seconds(judge: Callable[[str, str], bool], answer: str, gold: str) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    judge(answer, gold)
    return time.perf_counter() - begin


def easy_pairs() -> list[tuple[str, str]]:
    """Numbers as models write them, right and wrong, no pair twice (both sides cache what they parsed)."""
    pairs = []
    for n in range(11, 211):
        work = f"First we add the parts, then we divide by {n}. "
        pairs.append((f"{work}So the answer is \\boxed{{{n * 7}}}.", str(n * 7)))
        pairs.append((f"{work}\\boxed{{\\frac{{{n}}}{{{n + 1}}}}}", f"\\frac{{{n}}}{{{n + 2}}}"))
        pairs.append((f"{work}The final answer is ${n}.25$.", f"{n}.25"))
    return pairs


def hard_pairs() -> list[tuple[str, str]]:
    """Algebra with fresh coefficients; the reward decides much of it by values at fixed points."""
    pairs = []
    for n in range(2, 42):
        pairs.append((f"\\boxed{{(x+{n})^2}}", f"x^2+{2 * n}x+{n * n}"))
        pairs.append((f"\\boxed{{\\frac{{x+{n}}}{{2}}}}", f"\\frac{{x}}{{2}}+{n + 1}"))
        pairs.append((f"\\boxed{{\\sqrt{{{n * n * 3}}}}}", f"{n}\\sqrt{{3}}"))
        pairs.append((f"\\boxed{{{n}\\sin(2x)}}", f"{2 * n}\\sin(x)\\cos(x)"))
    return pairs


def left_over_pairs(start: int, stop: int) -> list[tuple[str, str]]:
    """Pairs that exact comparison cannot decide, so that both sides ask math-verify."""
    pairs = []
    for n in range(start, stop):
        pairs.append((f"\\boxed{{e^{{x+{n}}}}}", f"e^x e^{{{n}}}"))
        pairs.append((f"\\boxed{{\\ln({n * n})}}", f"2\\ln({n})"))
        pairs.append((f"\\boxed{{\\binom{{{n + 3}}}{{2}}}}", f"\\frac{{{(n + 3) * (n + 2)}}}{{2}}"))
        pairs.append((f"\\boxed{{x^2 \\ge {n}y}}", f"x^2 - {n}y \\ge 0"))
    return pairs


def compare(name: str, pairs: list[tuple[str, str]], at_least: float) -> bool:
    """Print ours, the peer and the ratio of the totals."""
    first, second = [], []
    for pair in pairs:  # in turn, so that both meet the same load
        first.append(seconds(ours, *pair))
        second.append(seconds(alone, *pair))
    ratio = sum(second) / sum(first)
    print(
        f"{name}: {len(pairs)} pairs, ours {statistics.median(first) * 1e3:.3f} ms, "
        f"math-verify alone {statistics.median(second) * 1e3:.3f} ms (medians); "
        f"totals {sum(first):.3f} s and "
        f"{sum(second):.3f} s, ratio {ratio:.1f} x (wanted {at_least:g})"
    )
    return ratio >= at_least


def easy() -> bool:
    """Easy numeric answers, at least five times as fast as math-verify alone."""
    alone(r"\boxed{1}", "1")
    return compare("easy numbers", easy_pairs(), 5.0)


def hard() -> bool:
    """Answers that need algebra, never slower than math-verify alone."""
    alone(r"\boxed{e^x}", "e^{x+1}")
    decided = compare("hard algebra", hard_pairs(), 1.0)
    for pair in left_over_pairs(100, 105):  # sympy caches: both start equally warm
        seconds(ours, *pair)
        seconds(alone, *pair)
    return compare("algebra left to math-verify", left_over_pairs(2, 42), 1.0) and decided


def pathological() -> bool:
    """No call beyond its limit on LaTeX made to hang or to exhaust a grader."""
    ours(r"\boxed{e^x}", "e^{x+1}")
    times = []
    for line in PATHOLOGICAL.read_text(encoding="utf-8").splitlines():
        begin = time.perf_counter()
        math(solution_str=f"\\boxed{{{line}}}", ground_truth=r"\frac{\pi}{7}", time_limit=LIMIT)
        times.append(time.perf_counter() - begin)
    over = sum(t > LIMIT + LATE for t in times)
    print(
        f"pathological LaTeX: {len(times)} calls, limit {LIMIT} s, slowest {max(times):.3f} s, "
        f"beyond it {over}"
    )
    return over == 0


def sandbox() -> bool:
    """At least 20 programs a second on two cores, each in its own sandbox."""
    programs = [f"print(sum(int(x) for x in input().split()) + {n})" for n in range(200)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda p: run_python(p, "1 2"), programs[:4]))
        begin = time.perf_counter()
        outcomes = list(threads.map(lambda p: run_python(p, "1 2"), programs))
        took = time.perf_counter() - begin
    good = [outcome.stdout.strip() for outcome in outcomes] == [str(n + 3) for n in range(200)]
    rate = len(programs) / took
    print(
        f"sandbox: {len(programs)} programs on 2 threads ({os.cpu_count()} cores), "
        f"{rate:.1f} programs/s (wanted 20)"
    )
    return good and rate >= 20


def wrapper() -> bool:
    """What the training wrapper adds to a call, parts written to disk: below 50 microseconds."""

    def function(solution_str: str, ground_truth: str) -> dict[str, float]:
        return {"score": float(solution_str == ground_truth), "size": 1.0}

    passed = {"data_source": "d", "solution_str": "42", "ground_truth": "42", "extra_info": {"index": 1}}
    count, rounds = 4000, 5

    async def run() -> list[float]:
        loop = asyncio.get_running_loop()
        added = []
        for number in range(rounds):
            reward = TrainingReward(bind("f", function), "raise", Path(folder) / str(number))
            begin = time.perf_counter()
            for _ in range(count):
                await reward.score_async(passed)
            middle = time.perf_counter()
            for _ in range(count):  # as verl's naive manager calls a plain function
                await loop.run_in_executor(None, lambda: function(solution_str="42", ground_truth="42"))
            added.append((2 * middle - begin - time.perf_counter()) / count)
        return added

    with tempfile.TemporaryDirectory() as folder:
        added = statistics.median(asyncio.run(run())) * 1e6
    print(f"training wrapper: {added:.1f} microseconds a call over verl's own way (wanted below 50)")
    return added < 50


CLAIMS = {f.__name__: f for f in (easy, hard, pathological, sandbox, wrapper)}


def main() -> int:
    """Measure and judge; 1 if a claim is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=CLAIMS, action="append", help="measure this claim only")
    chosen = parser.parse_args().only or list(CLAIMS)
    logging.disable(logging.CRITICAL)
    missed = [name for name in chosen if not CLAIMS[name]()]
    HardMath.shared().close()
    print(f"missed: {', '.join(missed)}" if missed else "every claim holds")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
