"""What was survived, what a user's code raised, and what only looks like a cause."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from common.failures import console, explain
from common.failures.patterns import table

LOGS = Path(__file__).parent / "logs"
STEPS = "".join(f"(TaskRunnerV1 pid=9) step:{n} - critic/score/mean:0.5\n" for n in range(1, 201))
VERL = "/v/lib/python3.11/site-packages/verl"
PORT = "(vLLMHttpServer pid=4) WARNING [parallel.py:624] Address already in use. Retrying with a new port."
HARMLESS = [
    PORT,
    "(WorkerDict pid=4) WARN: grad_norm is not finite: nan",
    "(raylet) [2026 E] worker_pool.cc:586: Some workers of the worker process(12) have not registered within the "
    "timeout. The process is still alive, probably it's hanging during start.",
    "(pid=4) WARNING [interface.py:358] Failed to import from vllm._C: ImportError('/x/_C.so: undefined symbol: "
    "_ZN3c104cuda9SetDeviceEa')",
    "(WorkerDict pid=3) non-default args: {'backend': 'nccl', 'nccl_timeout': 600}",
]


def traceback(error: str, *frames: tuple[str, str], prefix: str = "") -> str:
    rows = ["Traceback (most recent call last):"]
    for file, function in frames:
        rows += [f'  File "{file}", line 7, in {function}', "    x"]
    return "".join(f"{prefix}{row}\n" for row in [*rows, error])


def prompt_error(error: str, file: str = "/home/u/my_reward.py", function: str = "compute_score") -> str:
    """What verl prints of a prompt that failed, after which it goes on."""
    return traceback(
        error,
        (f"{VERL}/experimental/agent_loop/agent_loop.py", "_run_prompt"),
        (f"{VERL}/experimental/reward_loop/reward_manager/naive.py", "run_single"),
        (file, function),
        prefix="(AgentLoopWorkerTQ pid=77) ",
    )


TOOL = traceback("RuntimeError: the tool server answered 502", ("/home/u/my_tool.py", "run"))
NONE_LEFT = traceback(
    "RuntimeError: no materializable trajectories", (f"{VERL}/trainer/ppo/v1/trainer_base.py", "fit")
)


def test_every_expression_has_what_its_words_need() -> None:
    for row in table().failures:
        words = [*row.says.values(), *row.do.values()]
        needed = {name for text in words for _, name, _, _ in string.Formatter().parse(text) if name}
        for regex in (*row.regexes, *row.frames, *row.at):
            assert needed - {"phase", "error"} <= set(regex.groupindex), (row.kind, regex.pattern)


def test_an_optimizer_shard_of_another_world_size() -> None:
    missing = (
        "FileNotFoundError: [Errno 2] No such file: '/c/global_step_20/actor/optim_world_size_2_rank_0.pt'"
    )
    found = explain(traceback(missing, (f"{VERL}/x.py", "load_checkpoint")), 1)
    assert found.kind == "world_size"
    assert "than the 2 of this run" in found.what


@pytest.mark.parametrize(
    "error",
    [
        "TypeError: 'NoneType' object is not subscriptable",
        "TypeError: 'NoneType' object is not iterable",
        "ZeroDivisionError: division by zero",
        "KeyError: 'answer'",
        "KeyError: 'ground_truth'",
        "AssertionError: x must be divisible by 3",
        "ValueError: 12 is longer than 5",
    ],
)
def test_what_a_reward_raises_is_not_taken_for_verls_own_error(error: str) -> None:
    found = explain(prompt_error(error) + NONE_LEFT, 1)
    assert (found.kind, found.phase, found.error) == ("reward_swallowed", "reward", error)
    assert found.what == f"the reward raised for every answer of a batch: {error}"
    # Alone in the log, as in a validation before the first step, and with harmless lines around it.
    found = explain(f"{PORT}\n{prompt_error(error)}{HARMLESS[1]}\n", 1)
    assert (found.kind, found.what) == ("reward", f"the reward function raised: {error}")


@pytest.mark.parametrize(
    ("error", "kind"),
    [("KeyError: 'ground_truth'", "data_column"), ("ZeroDivisionError: x", "reward_swallowed")],
)
def test_verls_own_reward_code(error: str, kind: str) -> None:
    file = f"{VERL}/utils/reward_score/gsm8k.py"
    assert explain(prompt_error(error, file) + NONE_LEFT, 1).kind == kind


@pytest.mark.parametrize(
    "error",
    ["TypeError: 'NoneType' object is not subscriptable", "KeyError: 'prompt'", "ZeroDivisionError: x"],
)
def test_a_users_data_set_shows_its_own_error(error: str) -> None:
    found = explain(traceback(error, ("/home/u/my_dataset.py", "__getitem__")), 1)
    assert (found.kind, found.phase, found.error) == ("unknown", "data loading", error)


@pytest.mark.parametrize("line", HARMLESS)
def test_a_harmless_line_explains_nothing(line: str) -> None:
    assert explain(f"{line}\n{STEPS}{TOOL}", 1).error == "RuntimeError: the tool server answered 502"
    assert explain(f"{line}\n{TOOL}", 1).kind == "unknown"
    for start in (f"{line}\n{STEPS}", f"{STEPS}{line}\n"):
        assert explain(start, 137).kind == "killed"
        assert explain(start, 139).kind == "segfault"
    assert explain(f"{line}\n{STEPS}", 0).kind == ""


def test_a_line_that_follows_tells() -> None:
    assert explain(f"{STEPS}torch: CUDA out of memory\n", 1).kind == "gpu_oom"
    assert explain(f"{STEPS}{TOOL}terminate: std::bad_alloc\n", 1).kind == "host_memory"
    # Ray prints its processes' lines out of order, and nothing survives its memory monitor.
    assert explain(f"Task was killed due to the node running low on memory\n{STEPS}", 137).kind == "ray_oom"


def test_a_port_that_stays_taken_still_counts() -> None:
    assert explain("RuntimeError: Address already in use\n", 1).kind == "port"
    assert explain(f"{PORT}\n", 1).kind == "unknown"


def test_nan_counts_where_it_is_still_there() -> None:
    nan = HARMLESS[1] + "\n"
    last = "(TaskRunnerV1 pid=9) step:201 - actor/grad_norm:nan\n"
    assert explain(STEPS + nan + last, 0).kind == "nan"
    assert explain(nan + STEPS + last, 1).kind == "unknown"
    assert explain(f"{STEPS}{nan}{last}  exitcode  : -9 (pid: 5)\n", 1).kind == "killed"


def test_an_engine_that_dies_later_did_start() -> None:
    dead = traceback(
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
        (f"{VERL}/workers/rollout/vllm_rollout/vllm_async_server.py", "generate"),
    )
    found = explain(STEPS + dead, 1)
    assert (found.kind, found.phase, found.what) == ("vllm_died", "rollout", "vLLM's engine died (rollout)")
    assert explain(dead, 1).kind == "vllm_start"
    own = traceback(
        "RuntimeError: odd", ("/v/site-packages/vllm/core.py", "run"), prefix="(EngineCore_DP0 pid=3) "
    )
    found = explain(STEPS + own + dead, 1)
    assert (found.kind, found.error) == ("vllm_died", "RuntimeError: odd")


TIMEOUT = prompt_error("TimeoutError: tool took 10 s", f"{VERL}/tools/t.py", "run_tool")
STEP_3 = "(TaskRunnerV1 pid=9) step:3 - critic/score/mean:0.5\n"


def test_an_exception_that_was_survived_hides_no_other() -> None:
    early = TIMEOUT + STEP_3
    killed = explain(early + (LOGS / "rl_killed.txt").read_text(), 1)
    assert (killed.kind, "ActorDiedError" in killed.error) == ("killed", True)
    assert explain(early, 137).kind == "killed"
    assert explain(early, 0).kind == ""
    assert explain(early + "error: no more rows\n", 2).error == "error: no more rows"
    late = explain(STEP_3 + TIMEOUT, 137)
    assert (late.kind, late.error) == ("killed", "TimeoutError: tool took 10 s")
    # Where nothing else is said it is shown.
    assert explain(early, 1).error == "TimeoutError: tool took 10 s"
    pandas = traceback("ModuleNotFoundError: No module named 'pandas'", ("/v/site-packages/wandb/x.py", "f"))
    assert explain(pandas + STEPS, 137).kind == "killed"


def test_a_rank_that_fails_before_another_one_logs_the_step() -> None:
    own = traceback("KeyError: 'odd'", ("/home/u/my_dataset.py", "__getitem__"), prefix="[rank1]: ")
    report = traceback(
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ", ("run.py", "run")
    )
    found = explain(f"step:1 - train/loss:2.0\n{own}step:2 - train/loss:2.0\n{report}", 1)
    assert found.error == "KeyError: 'odd'"


def test_a_prefix_without_a_name() -> None:
    text = traceback("ImportError: cannot import name zz", ("/x/a.py", "f"), prefix="(pid=4) ")
    (one,) = console.raised(console.lines_of(text.replace("(pid=4)", "(pid=4, ip=10.0.0.9)", 1)))
    assert (one.source, one.title) == ("4", "ImportError: cannot import name zz")
    found = explain(text, 1)
    assert (found.kind, found.where) == ("import", "/x/a.py:7 in f")
    assert not re.search("pid=", found.error)
