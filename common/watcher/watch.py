"""The watcher's loop: look at the logs, say what is new, ask for a stop where the user wanted one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.callbacks import Actions, actions_of, after_save
from common.checkpoints import place
from common.data_utils.atomic import write_text
from common.launcher import runs
from common.watcher import stacks
from common.watcher.alerts import FORMAT_VARIABLE, VARIABLE, Webhook
from common.watcher.effects import EffectCheck
from common.watcher.pace import Pace, words
from common.watcher.run_state import RunState
from common.watcher.settings import STALL, Settings, stop_rules
from monitor.settings import load as load_panel

HEARTBEAT = "heartbeat.json"
EVENTS = "watch.jsonl"
STOP = "stop.json"


@dataclass
class Watch:
    """One run, from its launch to its end.

    Args:
        folder: the run folder.
        tag: of the attempt, see `common.launcher.processes`.
        supervisor: pid of the process that started the run; SIGINT to it stops the run.
        settings: see watch.yaml.
        say: prints a line for people.
        now: the clock, seconds since the epoch.
        webhook: address, "" for none.
        interrupt: asks a process to stop.
    """

    folder: Path
    tag: str
    supervisor: int
    settings: Settings
    say: Callable[[str], None]
    now: Callable[[], float] = time.time
    webhook: str = ""
    webhook_format: str = ""
    interrupt: Callable[[int, int], None] = os.kill
    terminal: bool = False
    holding: dict[str, int] = field(default_factory=dict)  # rule -> since which step
    stalled_since: float = 0.0
    stop_reason: str = ""
    stop_after_step: int = -1
    stopping: bool = False

    def __post_init__(self) -> None:
        self.run = RunState(self.folder)
        self.rules = load_panel(self.settings.rules).rules
        self.effect = EffectCheck(self.run)
        self.stop_on = stop_rules(self.run.knobs.get("STOP_ON", ""))
        self.actions: Actions = actions_of(self.run.knobs)
        self.hook = Webhook(self.webhook, self.webhook_format, self.settings.timeout, self.say)
        self.pace, self._known_round = self._new_pace(), self._round()
        self.saved = runs.latest_step(self.run.checkpoints)
        self._pool = ThreadPoolExecutor(1, "after-save")
        self._last: dict[str, float] = {}  # when something was done last
        self._troubles: set[tuple[Any, ...]] = set()

    def _round(self) -> tuple[int, bool]:
        return self.run.attempt["n"], "command" in self.run.attempt

    def _new_pace(self) -> Pace:
        self._attempt = self.run.attempt["n"]
        total = self.run.record.get("total_steps") or 0
        return Pace(self.now(), self.settings.stall, self.run.slow_steps(), total, self.run.logs_first)

    # ---- one look ---------------------------------------------------------------------------------

    def tick(self) -> None:
        """Look at everything once."""
        now = self.now()
        fresh = bool(self._guarded(self._read_step))
        if not self.effect.done:
            self._guarded(self._check_effect)
        self._guarded(self._look_for_stall, now)
        if self._due("rules", self.settings.rules_every, now) and (fresh or self.pace.steps_seen):
            self._guarded(self._apply_rules)
        self._guarded(self._look_for_checkpoint)
        self._guarded(self._stop_when_saved)
        if fresh or self._due("heartbeat", self.settings.heartbeat, now):
            self._guarded(self._beat, now)
        every = self.settings.progress_terminal if self.terminal else self.settings.progress_log
        if fresh and self._due("progress", every, now):
            self._guarded(self._say_progress, now)

    def _guarded(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """Do one thing; what goes wrong (a full disk, a folder that is gone) is said once and stops nothing else."""
        try:
            return act(*arguments)
        except Exception as error:
            trouble = (act.__name__, type(error), getattr(error, "errno", None))
            if trouble not in self._troubles:
                self._troubles.add(trouble)
                self.say(f"the watcher cannot do all of its work: {type(error).__name__}: {error}")
            return None

    def _read_step(self) -> bool:
        """Read run.json and the newest step; whether that is new."""
        self.run.refresh()
        if self._round() != self._known_round:  # a self-play round begins, after what was asked before it
            self.pace, self._known_round = self._new_pace(), self._round()
            self.effect = EffectCheck(self.run, self.effect.console_size())
        if not self.pace.steps_seen:
            self.pace.began = max(self.pace.began, self.run.last_sign())
        step = self.run.newest_step()
        fresh = step is not None and (step[0] > self.pace.step or not self.pace.steps_seen)
        if step and fresh:
            self.pace.add(*step)
        return fresh

    def pause(self) -> float:
        """Seconds until the next look: a stall is reported when it becomes one, not a poll later."""
        left = self.pace.until_late(self.now())
        return min(self.settings.poll, max(0.02, left + 0.01)) if left > 0 else self.settings.poll

    def finish(self) -> None:
        """The run has ended and run.json says how: last checkpoint, last message."""
        self._guarded(self.run.refresh)
        self._guarded(self._look_for_checkpoint)
        if self.actions.keep_best and self.saved:  # the last validation is known only now
            last = self.run.checkpoints / f"global_step_{self.saved}"
            self._submit(last, self.saved, Actions(self.actions.keep, keep_best=True))
        self._pool.shutdown(wait=True)
        state = self.run.record.get("state", "")
        self._guarded(self._beat, self.now(), state)
        failure = self.run.record.get("failure") or {}
        if state in ("failed", "finished"):
            text = f"{state} at step {self.pace.step} of {self.pace.total or '?'}"
            self._alert(state, f"{text}: {failure['what']}" if failure.get("what") else text)
        self.hook.close()

    def _due(self, what: str, every: float, now: float) -> bool:
        if now - self._last.get(what, 0.0) < every:
            return False
        self._last[what] = now
        return True

    # ---- what it says -----------------------------------------------------------------------------

    def _beat(self, now: float, state: str = "") -> None:
        taken, eta = self.pace.step_seconds, self.pace.eta(now)
        beat = {
            "time": round(now, 3),
            "state": state or ("stalled" if self.stalled_since else "training" if taken else "starting"),
            "step": self.pace.step,
            "total_steps": self.pace.total,
            "step_seconds": taken and round(taken, 3),
            "eta_seconds": eta and round(eta, 1),
            "last_step_time": self.pace.seen or None,
            "rules": sorted(self.holding),
            "supervisor": self.supervisor,
        }
        write_text(self.folder / HEARTBEAT, json.dumps(beat))

    def _say_progress(self, now: float) -> None:
        parts = [f"step {self.pace.step} of {self.pace.total or '?'}", self.run.shown_metric()]
        if taken := self.pace.step_seconds:
            parts.append(f"{taken:.1f} s a step" if taken < 100 else f"{words(taken)} a step")
        if (eta := self.pace.eta(now)) is not None:
            parts.append(f"about {words(eta)} left")
        self.say(", ".join(part for part in parts if part))

    def _note(self, event: str, text: str, **fields: Any) -> None:
        """A line on the console and in watch.jsonl."""
        self.say(text)
        line = {"time": round(self.now(), 3), "event": event, "step": self.pace.step, "text": text, **fields}
        # Said it is anyway; on a full disk the stop that may follow must still come.
        with contextlib.suppress(OSError), (self.folder / EVENTS).open("a", encoding="utf-8") as log:
            log.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _alert(self, event: str, text: str, **fields: Any) -> None:
        if event in self.settings.events or event == "rule":
            full = f"[verl_training] {self.run.name}: {text}"
            self.hook.send(
                full, run=self.run.name, event=event, step=self.pace.step, time=self.now(), **fields
            )

    # ---- stall ------------------------------------------------------------------------------------

    def _look_for_stall(self, now: float) -> None:
        late = self.pace.late_by(now)
        if late is None:
            if self.stalled_since:
                gone = words(now - self.stalled_since)
                self.stalled_since = 0.0
                self._note(
                    "went_on", f"went on at step {self.pace.step}, {gone} after the stall was reported"
                )
            return
        if self.stalled_since:
            return
        self.stalled_since = now
        path = self.folder / "stacks" / f"attempt-{self._attempt}-step-{self.pace.step}.txt"
        usual = self.pace.step_seconds
        if usual is None and self.pace.steps_seen:
            what = f"no new step for {words(late)} after step {self.pace.step}, the first"
        elif usual is not None:
            what = f"no new step for {words(late)} after step {self.pace.step} (steps take {usual:.1f} s)"
        else:
            what = f"start-up has taken {words(late)} and no second step was logged"
        text = f"stalled: {what}; stacks in {path}"
        self._note("stall", text, stacks=str(path))
        self._alert("stall", text)
        self._guarded(self._save_stacks, path, text)
        if STALL in self.stop_on:
            self._stop("rule", text)

    def _save_stacks(self, path: Path, why: str) -> None:
        count, stopped = stacks.save(self.tag, path, why)
        if stopped:
            self._note(
                "stall", f"stopped by a signal: process {', '.join(stopped)} (kill -CONT lets it go on)"
            )
        elif not count:
            self._note("stall", "no process of this run is left on this machine")

    # ---- rules ------------------------------------------------------------------------------------

    def _apply_rules(self) -> None:
        found = {f"{hit.rule.id}:{hit.metric}": hit for hit in self.run.observations(self.rules)}
        for name, hit in found.items():
            text = hit.sentence("en")
            if name not in self.holding:
                self._note("rule", f"{text} {hit.advice('en')}".strip(), rule=hit.rule.id, metric=hit.metric)
                if hit.rule.severity in self.settings.severities:
                    self._alert("rule", text, rule=hit.rule.id, severity=hit.rule.severity)
            if hit.rule.id in self.stop_on and not self.stop_reason and self.run.is_new(hit):
                self._stop_after_checkpoint(f"rule {hit.rule.id}: {text}")
        self.holding = {name: hit.since for name, hit in found.items()}

    def _stop_after_checkpoint(self, reason: str) -> None:
        if self._is_last(self.pace.step):
            return
        last = runs.latest_step(self.run.checkpoints) or 0
        freq = self.run.save_freq
        if freq <= 0:
            self._stop("rule", reason)
            return
        self.stop_reason, self.stop_after_step = reason, last
        self._note("stopping", f"stopping after the next checkpoint (SAVE_FREQ={freq}): {reason}")

    def _is_last(self, step: int) -> bool:
        """Whether the run ends with *step* by itself: a stop would only cut what it does at its end."""
        return 0 < self.pace.total <= step

    def _stop_when_saved(self) -> None:
        """RL saves, validates and then logs: only a step that is logged too is done."""
        saved = self.saved or 0
        if self.stop_reason and self.stop_after_step < saved <= self.pace.step and not self._is_last(saved):
            self._stop("rule", self.stop_reason)

    def _stop(self, kind: str, reason: str) -> None:
        if self.stopping:
            return
        self.stopping = True
        content = {"kind": kind, "reason": reason, "attempt": self._attempt, "step": self.pace.step}
        with contextlib.suppress(OSError):
            write_text(self.folder / STOP, json.dumps(content, ensure_ascii=False))
        self._note("stopped", f"stopping the run: {reason}")
        self._alert("effect" if kind == "effect" else "stopped", f"stopping: {reason}")
        self.interrupt(self.supervisor, signal.SIGINT)

    # ---- checkpoints ------------------------------------------------------------------------------

    def _look_for_checkpoint(self) -> None:
        newest = runs.latest_step(self.run.checkpoints)
        if newest is None or newest == self.saved:
            return
        # Several may be complete since the last look.
        fresh = {
            s: f for s, f in place.steps_of(self.run.checkpoints).items() if (self.saved or 0) < s <= newest
        }
        self.saved = newest
        for step, folder in fresh.items() if self.actions else ():
            self._submit(folder, step, self.actions)

    def _submit(self, folder: Path, step: int, actions: Actions) -> None:
        self._pool.submit(
            after_save,
            actions,
            folder,
            step,
            self.say,
            log=self.folder / "on_save.log",
            protected=self.run.protected_steps,
        )

    # ---- effect check -----------------------------------------------------------------------------

    def _check_effect(self) -> None:
        """Once verl has printed its config: did everything arrive that the launcher passed?"""
        for line in self.effect.look(trained=self.pace.step > 0):
            self._note("effect", line)
        if self.effect.wrong:
            self._stop("effect", "; ".join(map(str, self.effect.wrong)))


def watch(
    folder: Path, tag: str, supervisor: int, settings: Settings, ended: Callable[[float], bool]
) -> None:
    """Watch until *ended*, which waits that many seconds, says that the run is over."""
    from common.launcher.supervise import say

    # Taken out: ON_SAVE and the export inherit the rest.
    hook, form = os.environ.pop(VARIABLE, ""), os.environ.get(FORMAT_VARIABLE, "")
    terminal = sys.stderr.isatty()
    watcher = Watch(
        folder, tag, supervisor, settings, say, webhook=hook, webhook_format=form, terminal=terminal
    )
    while not ended(watcher.pause()):
        watcher.tick()
    watcher.finish()
