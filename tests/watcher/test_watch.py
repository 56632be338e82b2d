"""The watcher's loop on a run that a test writes, with a clock that the test moves."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable

import pytest

from common.launcher.errors import UserError
from common.watcher.watch import Watch

from .conftest import Paper

Running = Callable[..., Watch]


def test_heartbeat_and_progress_line(paper: Paper, running: Running) -> None:
    running(40, train__loss=0.25)
    beat = paper.beat()
    assert (beat["state"], beat["step"], beat["total_steps"]) == ("training", 40, 1000)
    assert beat["step_seconds"] == 10.0
    assert beat["eta_seconds"] == pytest.approx(9600.0)
    assert beat["time"] == paper.clock
    assert "step 31 of 1000, train/loss 0.250, 10.0 s a step, about 2 h 42 min left" in paper.said
    assert len(paper.said) == 2  # in a log not more often than every five minutes


def test_heartbeat_goes_on_without_steps(paper: Paper) -> None:
    watch = paper.start()
    watch.tick()
    first = paper.beat()
    paper.clock += 11
    watch.tick()
    assert first["state"] == "starting"
    assert paper.beat()["time"] == first["time"] + 11


def test_stall_is_reported_once_and_so_is_its_end(paper: Paper, running: Running) -> None:
    watch = running(10)
    paper.said.clear()
    paper.clock += 50
    watch.tick()
    assert paper.said == []
    paper.clock += 1
    watch.tick()
    assert paper.said[0].startswith(
        "stalled: no new step for 51 s after step 10 (steps take 10.0 s); stacks in "
    )
    assert paper.said[1] == "no process of this run is left on this machine"
    stacks = paper.folder / "stacks" / "attempt-1-step-10.txt"
    assert stacks.read_text().startswith("stalled: no new step")
    watch.tick()
    paper.clock += 30
    watch.tick()
    assert len(paper.said) == 2
    assert paper.beat()["state"] == "stalled"
    paper.step(11, 5.0)
    watch.tick()
    assert paper.said[2] == "went on at step 11, 35 s after the stall was reported"
    assert [event["event"] for event in paper.events()] == ["stall", "stall", "went_on"]
    assert paper.signals == []


def test_a_start_that_takes_too_long(paper: Paper) -> None:
    watch = paper.start()
    paper.clock += 1801
    watch.tick()
    assert "stalled: start-up has taken 30 min and no second step was logged" in paper.said[0]


def test_a_trainer_that_works_before_its_first_step_is_not_stuck(paper: Paper) -> None:
    """DPO's reference pass over many pairs."""
    watch = paper.start()
    metrics = paper.folder / "metrics-1.jsonl"
    metrics.touch()
    for _ in range(3):
        paper.clock += 1000
        os.utime(metrics, (paper.clock, paper.clock))
        watch.tick()
    assert paper.said == []
    paper.clock += 1801
    watch.tick()
    assert paper.said[0].startswith("stalled: start-up has taken 30 min")


def test_stop_on_stall(paper: Paper, running: Running) -> None:
    paper.record(knobs={"STOP_ON": "stall"})
    watch = running(10)
    paper.clock += 51
    watch.tick()
    watch.tick()
    assert paper.signals == [(4242, signal.SIGINT)]


@pytest.mark.parametrize(
    ("rule", "metrics", "steps", "text"),
    [
        ("not_finite", {"actor__pg_loss": float("nan")}, 3, "was not finite"),
        ("kl_high", {"actor__kl_loss": 0.9}, 10, "far from the reference: KL 0.9"),
        ("kl_low", {"actor__kl_loss": 1e-7}, 40, "hardly moved"),
        ("length_limit", {"response_length__clip_ratio": 0.5}, 6, "50 % of the answers are cut"),
        ("reward_constant", {"critic__score__mean": 0.0}, 12, "has been exactly 0"),
    ],
)
def test_rule_is_noted_once(
    paper: Paper, running: Running, rule: str, metrics: dict[str, float], steps: int, text: str
) -> None:
    if rule == "not_finite":  # verl's file logger writes null; the console tells which
        paper.console("".join(f"step:{n} - actor/pg_loss:nan\n" for n in range(1, steps + 1)))
    running(steps + 5, **metrics)
    (event,) = [event for event in paper.events() if event.get("rule") == rule]
    assert text in event["text"]
    assert paper.signals == []


def test_throughput_drop_loss_spike_and_entropy(paper: Paper, running: Running) -> None:
    watch = running(40, perf__throughput=1000.0, train__loss=1.0, actor__entropy=1.0)
    for number in range(41, 61):
        paper.step(
            number,
            10.0,
            perf__throughput=500.0,
            train__loss=9.0 if number == 50 else 1.0,
            actor__entropy=0.01,
        )
        watch.tick()
    assert {event["rule"] for event in paper.events()} == {
        "throughput_drop",
        "loss_spike",
        "entropy_collapse",
    }


def test_no_signal_is_read_from_the_rollouts(paper: Paper, running: Running) -> None:
    rollouts = paper.folder / "rollouts"
    rollouts.mkdir()
    watch = paper.start()
    for number in range(1, 9):
        row = '{"input": "q", "output": "a%d", "score": 1.0, "step": %d}\n'
        (rollouts / f"{number}.jsonl").write_text("".join(row % (k, number) for k in range(4)))
        paper.step(number, 20.0, actor__grad_norm=1.0)
        watch.tick()
    assert "reward_std_zero" in {event["rule"] for event in paper.events()}


def test_prompts_that_verl_gave_up_on_are_counted_in_the_console_log(paper: Paper, running: Running) -> None:
    paper.console("step:1 - critic/score/mean:0.5\nERROR:Error in _run_prompt for uid=1\nTraceback ...\n")
    running(3)
    (event,) = [event for event in paper.events() if event.get("rule") == "prompt_errors"]
    assert "1 prompts failed while answering (Error in _run_prompt), the first in step 2" in event["text"]


def test_stop_after_the_next_checkpoint(paper: Paper, running: Running) -> None:
    paper.record(knobs={"STOP_ON": "kl_high, not_finite", "SAVE_FREQ": "20"})
    paper.checkpoint(0)
    watch = running(12, actor__kl_loss=0.9)
    assert paper.signals == []
    assert any(
        line.startswith("stopping after the next checkpoint (SAVE_FREQ=20): rule kl_high")
        for line in paper.said
    )
    paper.step(20, 10.0)
    paper.checkpoint(20)
    watch.tick()
    watch.tick()
    assert paper.signals == [(4242, signal.SIGINT)]
    stop = (paper.folder / "stop.json").read_text()
    assert '"kind": "rule"' in stop
    assert "rule kl_high: The policy is far from the reference" in stop


def test_without_checkpoints_it_stops_at_once(paper: Paper, running: Running) -> None:
    paper.record(knobs={"STOP_ON": "kl_high", "SAVE_FREQ": "0"})
    running(12, actor__kl_loss=0.9)
    assert paper.signals == [(4242, signal.SIGINT)]


def test_a_rule_that_stop_on_does_not_name_stops_nothing(paper: Paper, running: Running) -> None:
    paper.record(knobs={"STOP_ON": "not_finite"})
    running(12, actor__kl_loss=0.9)
    assert paper.signals == []


def test_a_checkpoint_stops_the_run_only_once_its_step_is_logged(paper: Paper, running: Running) -> None:
    """RL saves, then validates, then logs."""
    paper.record(knobs={"STOP_ON": "kl_high", "SAVE_FREQ": "20"})
    watch = running(19, actor__kl_loss=0.9)
    paper.checkpoint(20)
    watch.tick()
    assert paper.signals == []
    paper.step(20, actor__kl_loss=0.9)
    watch.tick()
    assert paper.signals == [(4242, signal.SIGINT)]


@pytest.mark.parametrize(("freq", "looked"), [("20", 1), ("0", 20)])
def test_a_run_that_ends_by_itself_is_not_stopped(paper: Paper, freq: str, looked: int) -> None:
    paper.record(knobs={"STOP_ON": "kl_high", "SAVE_FREQ": freq}, total_steps=20)
    watch = paper.start()
    for step in range(1, 21):
        paper.step(step, actor__kl_loss=0.9)
        if step >= looked:
            watch.tick()
    paper.checkpoint(20)
    watch.tick()
    watch.finish()
    assert "rule" in {event["event"] for event in paper.events()}
    assert paper.signals == []
    assert not (paper.folder / "stop.json").exists()


def test_a_checkpoint_found_at_the_end_stops_nothing(paper: Paper, running: Running) -> None:
    paper.record(knobs={"STOP_ON": "kl_high", "SAVE_FREQ": "20"})
    watch = running(12, actor__kl_loss=0.9)
    paper.step(20)
    paper.checkpoint(20)
    watch.finish()
    assert paper.signals == []


@pytest.mark.parametrize("where", ["extra", "command"])
def test_a_frequency_of_the_users_own(paper: Paper, running: Running, where: str) -> None:
    paper.record(knobs={"STOP_ON": "kl_high", "SAVE_FREQ": "0"}, **{where: ["x", "trainer.save_freq=20"]})
    watch = running(12, actor__kl_loss=0.9)
    assert paper.signals == []
    assert any("stopping after the next checkpoint (SAVE_FREQ=20)" in line for line in paper.said)
    assert 20 in watch.pace.every


def test_prompt_errors_of_an_earlier_attempt_stop_nothing(paper: Paper) -> None:
    attempts = [{"n": n, "metrics": f"metrics-{n}.jsonl", "console": f"console-{n}.log"} for n in (1, 2)]
    paper.console("ERROR:Error in _run_prompt for uid=1\nstep:1 - critic/score/mean:0.5\n")
    paper.step(1)
    paper.record(knobs={"STOP_ON": "prompt_errors", "SAVE_FREQ": "0"}, attempts=attempts)
    watch = paper.start()
    console = paper.folder / "console-2.log"

    def step(number: int) -> None:
        paper.clock += 20
        metrics = paper.folder / "metrics-2.jsonl"
        with metrics.open("a") as log:
            row = {"step": number, "data": {"critic/score/mean": 0.1 * number}}
            log.write(json.dumps(row, separators=(",", ":")) + "\n")
        os.utime(metrics, (paper.clock, paper.clock))
        watch.tick()

    console.write_text("step:2 - critic/score/mean:0.5\n")
    step(2)
    step(3)
    assert [event["rule"] for event in paper.events() if "rule" in event] == ["prompt_errors"]
    assert paper.signals == []
    with console.open("a") as log:
        log.write("ERROR:Error in _run_prompt for uid=2\n")
    step(4)
    assert paper.signals == [(4242, signal.SIGINT)]


def test_stop_on_stall_where_no_stacks_can_be_written(paper: Paper, running: Running) -> None:
    paper.record(knobs={"STOP_ON": "stall"})
    watch = running(10)
    (paper.folder / "stacks").write_text("no folder")
    paper.clock += 51
    watch.tick()
    assert paper.signals == [(4242, signal.SIGINT)]
    assert any("the watcher cannot do all of its work: FileExistsError" in line for line in paper.said)


def test_what_the_watcher_cannot_do_is_said_once_and_it_goes_on(
    paper: Paper, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper.record(knobs={"STOP_ON": "stall"})
    watch = running(10)

    def broken(*_: object) -> None:
        raise KeyError("what")

    monkeypatch.setattr("common.launcher.effect.check", broken)
    monkeypatch.setattr(watch.run, "observations", broken)
    for _ in range(2):
        paper.console("more\n")
        paper.clock += 20
        watch.tick()
    assert [line for line in paper.said if "cannot" in line] == [
        "the watcher cannot do all of its work: KeyError: 'what'"
    ] * 2  # of two parts
    paper.clock += 51
    watch.tick()
    assert paper.signals == [(4242, signal.SIGINT)]
    monkeypatch.setattr(watch, "_look_for_checkpoint", broken)
    paper.record(state="finished")
    watch.finish()
    assert paper.beat()["state"] == "finished"


def test_a_folder_that_is_gone(paper: Paper, running: Running) -> None:
    watch = running(3)
    shutil.rmtree(paper.folder)
    for _ in range(3):
        paper.clock += 20
        watch.tick()
    watch.finish()
    assert any("cannot do all of its work" in line for line in paper.said)


def test_an_unknown_rule_in_stop_on(paper: Paper) -> None:
    paper.record(knobs={"STOP_ON": "kl_hihg"})
    with pytest.raises(
        UserError, match="STOP_ON names 'kl_hihg', which is no rule; there are: not_finite, kl_high"
    ):
        paper.start()


def test_each_self_play_round_is_checked_on_its_own(paper: Paper) -> None:
    """What is asked before the first round prints a config too; it is none that the round trains with."""
    rounds = ["python", "-m", "common.launcher.rounds", "--config-name", "config", "optim.lr=1"]
    attempt = {"n": 1, "metrics": "metrics-1.jsonl", "console": "console-1.log"}

    def printed(rate: float) -> None:
        paper.console(f"{ {'model': {}, 'optim': {'lr': rate}} }\n")

    paper.record(command=rounds, attempts=[attempt])
    watch = paper.start()
    printed(0.5)
    watch.tick()
    for number, rate in ((1, 1.0), (2, 2.0)):
        own = ["python", "--config-name", "config", f"optim.lr={rate}"]
        paper.record(command=rounds, attempts=[{**attempt, "n": number, "command": own}])
        watch.tick()
        printed(rate)
        watch.tick()
    assert paper.signals == []
    printed(3.0)
    paper.record(command=rounds, attempts=[{**attempt, "n": 3, "command": own}])
    watch.tick()
    printed(3.0)
    watch.tick()
    assert paper.signals == [(4242, signal.SIGINT)]
