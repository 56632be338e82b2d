"""Taking a console log apart: prefixes, tracebacks, Ray's and torchrun's wrapping."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from common.failures import console, explain

NESTED = """\
\x1b[36m(TaskRunnerV1 pid=5)\x1b[0m working
Traceback (most recent call last):
  File "/v/main_ppo.py", line 93, in run_ppo
    ray.get(runner.run.remote(config))
ray.exceptions.RayTaskError(RuntimeError): \x1b[36mray::TaskRunnerV1.run()\x1b[39m (pid=5, ip=10.0.0.1)
  File "/v/trainer_base.py", line 1860, in _update_actor
    output = self.actor_rollout_wg.update_actor(batch)
ray.exceptions.RayTaskError(RuntimeError): \x1b[36mray::WorkerDict.actor_rollout_update_actor()\x1b[39m (pid=7)
  File "/v/engine_workers.py", line 714, in update_actor
    return self.actor.train_mini_batch(data)
RuntimeError: something new
and its second line
"""


def test_rays_wrapping_comes_off() -> None:
    wrapped = console.raised(console.lines_of(NESTED))
    assert [one.name for one in wrapped] == ["RayTaskError", "RayTaskError", "RuntimeError"]
    assert wrapped[-1].remote == "WorkerDict.actor_rollout_update_actor"
    assert wrapped[-1].message == "something new\nand its second line"
    found = explain(NESTED, 1)
    assert (found.kind, found.phase) == ("unknown", "update of the actor")
    assert found.error == "RuntimeError: something new"
    assert found.line == 11
    assert found.where == "/v/engine_workers.py:714 in update_actor"
    assert "         RuntimeError: something new" in found.lines()


def test_lines_of_processes_that_talk_at_once_are_told_apart() -> None:
    text = (
        "(A pid=1) Traceback (most recent call last):\n"
        "(B pid=2, ip=10.0.0.9) Traceback (most recent call last):\n"
        '(A pid=1)   File "a.py", line 1, in one\n'
        '(B pid=2, ip=10.0.0.9)   File "b.py", line 2, in two\n'
        "(B pid=2, ip=10.0.0.9) KeyError: 'b'\n"
        "(A pid=1) ValueError: a\n"
    )
    found = [(one.source, one.title, one.frames[0][2]) for one in console.raised(console.lines_of(text))]
    assert found == [("2", "KeyError: 'b'", "two"), ("1", "ValueError: a", "one")]


def test_torchruns_and_vllms_prefixes() -> None:
    ranks = '[rank1]: Traceback (most recent call last):\n[rank1]:   File "x.py", line 3, in f\n[rank1]: OSError: no\n'
    (of_rank,) = console.raised(console.lines_of(ranks))
    assert (of_rank.source, of_rank.title) == ("rank1", "OSError: no")
    start = "(EngineCore_DP0 pid=9) ERROR 11-20 14:24:01 [core.py:936] "
    engine = "".join(
        start + line + "\n"
        for line in (
            "Traceback (most recent call last):",
            '  File "core.py", line 1, in run',
            "ValueError: too long",
        )
    )
    (of_engine,) = console.raised(console.lines_of(engine))
    assert (of_engine.source, of_engine.title) == ("9", "ValueError: too long")


def test_a_progress_bar_before_a_traceback() -> None:
    text = "Epoch 1: 0%|   | 0/3\rEpoch 1: 33%| 1/3\nTraceback (most recent call last):\n"
    assert [line.text for line in console.lines_of(text)[:2]] == ["Epoch 1: 0%|   | 0/3", "Epoch 1: 33%| 1/3"]


def test_a_huge_log_is_read_at_its_ends(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(console, "HEAD_BYTES", 100)
    monkeypatch.setattr(console, "TAIL_BYTES", 200)
    log = tmp_path / "log"
    log.write_text(
        "begin\n"
        + "x\n" * 10_000
        + 'Traceback (most recent call last):\n  File "x", line 1, in f\nKeyError: 1\n'
    )
    text = console.read(log)
    assert len(text) < 400
    assert text.startswith("begin")
    assert console.raised(console.lines_of(text))[0].title == "KeyError: 1"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*NESTED.splitlines(), "step:3 - a:1", "", "  ", "^^^", "(A pid=1) x", "ray::x() (pid=3)", "E: "]
        )
        | st.text(max_size=40),
        max_size=40,
    ),
    st.sampled_from([None, 0, 1, 137, 139, 143]),
)
def test_no_log_breaks_it(lines: list[str], code: int | None) -> None:
    found = explain("\n".join(lines), code)
    assert found.what
    assert found.do


def test_a_good_log_has_no_failure() -> None:
    found = explain("step:1 - train/loss:2.0\nstep:2 - train/loss:1.9\n", 0)
    assert (found.kind, found.phase) == ("", "training, after step 2")


def test_only_an_exit_code() -> None:
    assert explain("step:4 - train/loss:2.0\n", 137).kind == "killed"
    assert explain("", 139).kind == "segfault"
    assert explain("", 3).what == "the command ended with exit code 3 for a reason that is not in our table"


def test_a_program_that_says_itself_what_is_wrong() -> None:
    found = explain("loading\nerror: pair 3 takes 900 tokens, more than the 512 of a micro-batch\nbye\n", 2)
    assert (found.kind, found.line) == ("unknown", 2)
    assert found.error == "error: pair 3 takes 900 tokens, more than the 512 of a micro-batch"


def test_rays_report_of_an_ended_worker_does_not_hide_an_unknown_error() -> None:
    noise = "(raylet) A worker died or was killed while executing a task by an unexpected system error.\n"
    assert (
        explain(NESTED + noise + "The actor died unexpectedly before finishing this task.\n", 1).kind
        == "unknown"
    )
    assert explain("The actor died unexpectedly before finishing this task.\n", 1).kind == "killed"
