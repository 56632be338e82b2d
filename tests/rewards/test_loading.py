"""A user's file: every mistake is one clear sentence; every kind of callable works."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.reward_functions import RewardError, as_parts, load_reward
from common.reward_functions.__main__ import main

ROOT = Path(__file__).parents[2]
GOOD = """
from helper_of_mine import bonus

def plain(solution_str, ground_truth):
    return float(solution_str == ground_truth) + bonus

async def waiting(solution_str, **kwargs):
    return {"score": 1.0, "got": sorted(kwargs)}

class Judge:
    def __call__(self, solution_str, ground_truth, extra_info=None, *, strict=False):
        return 0.5 if strict else 1.0

class AsyncJudge:
    async def __call__(self, solution_str):
        return 0.25

judge, async_judge, number = Judge(), AsyncJudge(), 3

def trl_style(prompts, completions):
    return [1.0]

def positional(solution_str, /):
    return 1.0

def typo(soluton_str, ground_truth):
    return 1.0

def routed(solution_str, reward_router_address):
    return 1.0
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    """A reward file with a helper beside it."""
    (tmp_path / "helper_of_mine.py").write_text("bonus = 0.0\n")
    path = tmp_path / "my reward.py"
    path.write_text(GOOD)
    return path


CALL = {"data_source": "d", "solution_str": "a", "ground_truth": "a", "extra_info": {}}


def test_functions_objects_and_async_ones_work(user_file: Path) -> None:
    assert load_reward(str(user_file), "plain")(**CALL, reward_router_address="x") == 1.0
    assert load_reward(str(user_file), "judge", {"strict": True})(**CALL) == 0.5
    waiting = load_reward(str(user_file), "waiting")
    assert waiting.is_async
    assert asyncio.run(waiting(**CALL))["got"] == ["data_source", "extra_info", "ground_truth"]
    judge = load_reward(str(user_file), "async_judge")
    assert judge.is_async
    assert asyncio.run(judge(**CALL)) == 0.25
    assert load_reward(str(user_file), "routed").accepts == {"solution_str", "reward_router_address"}


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("plan", {}, r"has no function 'plan', did you mean 'plain'\?"),
        ("Judge", {}, "is a class; point to a function or to an instance"),
        ("number", {}, "is a int, not a function"),
        ("trl_style", {}, "needs prompts, completions, which nobody passes"),
        ("typo", {}, r"needs soluton_str, which nobody passes, did you mean 'solution_str'\?"),
        ("positional", {}, "takes positional-only arguments"),
        (
            "judge",
            {"strct": True},
            r"does not take the knob 'strct', did you mean 'strict'\?; its knobs: strict",
        ),
        ("plain", {"alpha": 1}, "does not take the knob 'alpha'; its knobs: none"),
    ],
)
def test_mistakes_in_name_or_signature(user_file: Path, name: str, kwargs: dict, message: str) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        load_reward(str(user_file), name, kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", "fails on import at line 1: SyntaxError"),
        ("import math\nimport no_such_module_here\n", "fails on import at line 2: ModuleNotFoundError"),
        ("1 / 0\n", "fails on import at line 1: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "fails on import at line 2: SystemExit: 3"),
    ],
)
def test_files_that_fail_on_import(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(RewardError, match=message):
        load_reward(str(path), "f")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="does not exist"):
        load_reward(str(tmp_path / "gone.py"), "f")
    with pytest.raises(RewardError, match="is not a Python file"):
        load_reward(str(tmp_path), "f")
    with pytest.raises(RewardError, match="no reward name given"):
        load_reward(None, "")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"acc": 1.0}, r"returned a dict without 'score' \(keys: acc\)"),
        (float("nan"), "returned nan as score"),
        (None, "returned None as score"),
        ([1.0], r"returned \[1.0\] as score"),
        ({"score": "1"}, "returned '1' as score"),
    ],
)
def test_results_that_are_no_score(result: object, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        as_parts(result, "mine")


def test_numbers_of_every_kind_become_parts() -> None:
    numpy = pytest.importorskip("numpy")
    assert as_parts(True, "f") == {"score": 1.0, "acc": True}
    assert as_parts(numpy.float32(0.5), "f") == {"score": 0.5, "acc": 0.5}
    assert as_parts({"score": numpy.int64(1), "why": "x"}, "f") == {"score": 1.0, "why": "x"}
    assert json.dumps(as_parts(numpy.array([2.0]), "f"))


def test_check_is_one_line_and_exit_code_2(user_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--path", str(user_file), "--name", "plain"]) == 0
    assert capsys.readouterr().out == "my reward.py:plain: ok\n"
    assert main(["check", "--path", str(user_file), "--name", "plan"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("reward error: ")
    assert main(["check", "--name", "common:math", "--kwargs", "{"]) == 2
    assert "--kwargs is not valid JSON" in capsys.readouterr().err


def test_importing_and_checking_is_light() -> None:
    program = (
        "import sys; from common.reward_functions.__main__ import main\n"
        "main(['check', '--name', 'common:math'])\n"
        "heavy = {'torch', 'transformers', 'sympy', 'math_verify', 'pyarrow', 'numpy', 'jsonschema', 'ray'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
