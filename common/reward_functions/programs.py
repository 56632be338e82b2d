"""Reward for code: run the model's program on tests, in the sandbox."""

from __future__ import annotations

import ast
import json
import math
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.reward_functions.answers import after_thinking
from common.reward_functions.errors import RewardError
from common.reward_functions.registry import Example, register
from common.reward_functions.sandbox import Limits, Outcome, fusion, run_python

_FENCE = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_HARNESS = Path(__file__).parent / "sandbox" / "harness.py"
_FLOAT = 1e-6  # relative tolerance between floats


@dataclass(frozen=True)
class Call:
    """One test of function style: what to evaluate in the sandbox and the value expected of it."""

    request: Mapping[str, Any]
    expected: Any


@dataclass(frozen=True)
class Tests:
    """Tests of one task: `calls` (function style) or `streams` of (stdin, expected stdout)."""

    calls: tuple[Call, ...] = ()
    streams: tuple[tuple[str, str], ...] = ()
    setup: str = ""


def extract_code(response: str) -> str | None:
    """The last Python block of a response; without any fence, the whole of it if it is Python."""
    text = after_thinking(response)
    blocks = [(language.lower(), code) for language, code in _FENCE.findall(text)]
    for wanted in (("python", "py", "python3"), ("",)):
        chosen = [code for language, code in blocks if language in wanted]
        if chosen:
            return chosen[-1]
    if blocks or not text.strip():
        return None
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return text


def read_tests(truth: Any) -> Tests:
    """Tests from a ground truth, as a dict, a list of asserts, or either as JSON text.

    `{"inputs": [...], "outputs": [...]}` are stdin and stdout; with `"fn_name"` they are argument lists and
    return values (APPS, TACO). `{"test_list": ["assert f(1) == 2"], "setup": "import math"}` and a bare list
    of asserts are function style (MBPP).

    Raises:
        RewardError: another form, or no test in it.
    """
    if isinstance(truth, str):
        try:
            truth = json.loads(truth)
        except json.JSONDecodeError:
            truth = [line for line in truth.splitlines() if line.strip()]
    if isinstance(truth, list | tuple):
        truth = {"test_list": list(truth)}
    if not isinstance(truth, Mapping):
        raise RewardError(f"code tests must be a dict or a list of asserts, not {type(truth).__name__}")
    setup = str(truth.get("setup") or truth.get("test_setup_code") or "")
    if truth.get("test_list"):
        tests = Tests(calls=tuple(_from_assert(line) for line in truth["test_list"]), setup=setup)
    elif truth.get("inputs") and truth.get("fn_name"):
        pairs = zip(truth["inputs"], truth["outputs"], strict=True)
        calls = tuple(
            Call({"name": truth["fn_name"], "args": _arguments(i)}, _maybe_json(o)) for i, o in pairs
        )
        tests = Tests(calls=calls, setup=setup)
    elif truth.get("inputs"):
        pairs = zip(truth["inputs"], truth["outputs"], strict=True)
        tests = Tests(streams=tuple((_lines(i), _lines(o)) for i, o in pairs))
    else:
        raise RewardError(
            f"code tests need test_list, or inputs and outputs; the keys are: {', '.join(truth)}"
        )
    return tests


def _arguments(given: Any) -> list[Any]:
    if isinstance(given, str):  # one JSON value per line
        return [json.loads(line) for line in given.splitlines()]
    return list(given)


def _maybe_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _from_assert(line: str) -> Call:
    try:
        statement = ast.parse(line.strip()).body[0]
    except (SyntaxError, IndexError):
        statement = None
    if not isinstance(statement, ast.Assert):
        raise RewardError(f"a code test must be an assert, not: {line.strip()[:80]}")
    test = statement.test
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        try:
            # Evaluated out here, so that the solution cannot see what is expected of it.
            return Call({"expression": ast.unparse(test.left)}, ast.literal_eval(test.comparators[0]))
        except ValueError:
            pass
    return Call({"expression": f"bool({ast.unparse(test)})"}, True)


@register(
    "code",
    low=0.0,
    high=1.0,
    source="tests run in the sandbox; test forms of APPS (arXiv:2105.09938) and MBPP (arXiv:2108.07732)",
    gold=lambda truth, extra: f"```python\n{extra['solution']}\n```" if extra.get("solution") else None,
    examples=(
        Example("```python\ndef f(x):\n    return 2 * x\n```", ["assert f(2) == 4"], 1.0),
        Example("```python\nprint(int(input()) + 1)\n```", {"inputs": ["1\n"], "outputs": ["2\n"]}, 1.0),
        Example("```python\ndef f(x):\n    return x\n```", ["assert f(2) == 4"], 0.0),
        Example(
            "```python\ndef f(x):\n    return x\n```",
            ["assert f(2) == 4", "assert f(0) == 0"],
            0.5,
            kwargs={"partial": True},
        ),
    ),
)
def code(
    solution_str: str,
    ground_truth: Any,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    partial: bool = False,
    wall_seconds: float = 10.0,
    total_seconds: float = 30.0,
    memory_mb: int = 1024,
    packages: bool = False,
    sandbox_url: str = "",
) -> dict[str, Any]:
    """Share of the tests that the program in the answer passes.

    Args:
        partial: score the share of passed tests; otherwise 1 for all of them and 0 for fewer.
        wall_seconds: limit of one program (CPU seconds too); function-style tests share one program.
        total_seconds: limit of one answer; tests that were not reached count as failed.
        memory_mb: limit of one program.
        packages: programs may import the installed packages, not only the standard library.
        sandbox_url: address of a Sandbox Fusion server to use instead of the local sandbox.

    Returns:
        score, acc (all passed), passed (share), extracted (a program was found), pred, reason.

    Raises:
        RewardError: the tests cannot be read, or the sandbox cannot be set up.
    """
    tests = read_tests(ground_truth)
    source = extract_code(solution_str)
    if source is None:
        return _verdict(0.0, False, partial, "no program found in the answer")
    limits = Limits(wall_seconds=wall_seconds, cpu_seconds=math.ceil(wall_seconds), memory_mb=memory_mb)

    def run(program: str, stdin: str, files: Mapping[str, str]) -> Outcome:
        if sandbox_url:
            return fusion.run_python(sandbox_url, program, stdin, files, limits)
        return run_python(program, stdin, files, limits, packages=packages)

    if tests.calls:
        share, reason = _run_calls(source, tests, run)
    else:
        share, reason = _run_streams(source, tests, run, partial, time.monotonic() + total_seconds)
    return _verdict(share, True, partial, reason)


def _verdict(share: float, extracted: bool, partial: bool, reason: str) -> dict[str, Any]:
    return {
        "score": share if partial else float(share == 1.0),
        "acc": float(share == 1.0),
        "passed": share,
        "extracted": float(extracted),
        "reason": reason,
    }


def _run_calls(source: str, tests: Tests, run: Any) -> tuple[float, str]:
    mark = secrets.token_hex(16)
    job = {"setup": tests.setup, "mark": mark, "calls": [dict(call.request) for call in tests.calls]}
    outcome = run(_HARNESS.read_text(encoding="utf-8"), json.dumps(job), {"solution.py": source})
    lines = [line[len(mark) :] for line in outcome.stdout.splitlines() if line.startswith(mark)]
    passed, first = 0, ""
    for number, call in enumerate(tests.calls):
        kind, text = _report(lines[number]) if number < len(lines) else ("lost", outcome.status)
        if kind == "value" and _equal(_literal(text), call.expected):
            passed += 1
        elif not first:
            what = call.request.get("expression") or call.request.get("name")
            first = {
                "value": f"{what} gave {text[:60]}",
                "lost": f"ended before test {number + 1}: {text}",
            }.get(kind, text)
    total = len(tests.calls)
    return passed / total, f"{passed} of {total} tests passed" + (f"; {first}" if first else "")


def _report(line: str) -> tuple[str, str]:
    try:
        kind, text = json.loads(line)
    except (ValueError, RecursionError):  # a solution that found the mark wrote nonsense
        return "error", "unreadable result"
    return str(kind), str(text)


def _run_streams(source: str, tests: Tests, run: Any, partial: bool, deadline: float) -> tuple[float, str]:
    passed, first = 0, ""
    total = len(tests.streams)
    for number, (given, expected) in enumerate(tests.streams, 1):
        if time.monotonic() > deadline:
            first = first or f"out of time before test {number}"
            break
        outcome = run(source, given, {})
        if outcome.status == "ok" and _same_output(outcome.stdout, expected):
            passed += 1
            continue
        said = outcome.stderr.strip().splitlines()
        wrong = "wrong output" if outcome.status == "ok" else said[-1] if said else outcome.status
        first = first or f"test {number}: {wrong[:120]}"
        if not partial:
            break
    return passed / total, f"{passed} of {total} tests passed" + (f"; {first}" if first else "")


def _same_output(actual: str, expected: str) -> bool:
    """Equal line by line but for white space at the ends; numbers may differ in the last digits."""
    left = [line.split() for line in actual.strip().splitlines()]
    right = [line.split() for line in expected.strip().splitlines()]
    if left == right:
        return True
    if [len(line) for line in left] != [len(line) for line in right]:
        return False
    return all(_same_token(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


def _same_token(left: str, right: str) -> bool:
    if left == right:
        return True
    if "." not in left + right:
        return False
    try:
        return math.isclose(float(left), float(right), rel_tol=_FLOAT, abs_tol=_FLOAT)
    except ValueError:
        return False


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _equal(value: Any, expected: Any) -> bool:
    """Equality that takes a list for a tuple, and floats to a tolerance; True is not 1."""
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, float) or isinstance(expected, float):
        if not isinstance(value, int | float) or not isinstance(expected, int | float):
            return False
        return math.isclose(value, expected, rel_tol=_FLOAT, abs_tol=_FLOAT) or value == expected
    if isinstance(value, list | tuple) and isinstance(expected, list | tuple):
        return len(value) == len(expected) and all(map(_equal, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        # JSON makes every key of an expected dict a string.
        keyed = {str(k): v for k, v in value.items()} if all(isinstance(k, str) for k in expected) else value
        return keyed.keys() == expected.keys() and all(_equal(keyed[k], expected[k]) for k in expected)
    return bool(value == expected)
