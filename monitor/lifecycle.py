"""Whether a run goes, has ended or hangs, and the line that says why."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monitor.run import Run

WORDS = {
    "en": {
        "exit": "exit code {code}",
        "gone": "process {pid} is gone and never reported an end",
        "silent": "nothing written for {idle:.0f} s (steps take {pace:.0f} s)",
        "unknown": "no end was recorded; nothing has been written for a while",
    },
    "zh": {
        "exit": "退出码 {code}",
        "gone": "进程 {pid} 已不在,且没有报告结束",
        "silent": "已有 {idle:.0f} 秒没有写入(每步约 {pace:.0f} 秒)",
        "unknown": "没有记录结束,且已有一段时间没有写入",
    },
}


def state(run: Run, now: float, stall_factor: float, stall_seconds: float, lang: str) -> tuple[str, str]:
    """(running | finished | failed | interrupted | stalled | ended | samples, one line why, in ``lang``)."""
    words = WORDS[lang]
    if run.files.results or not (run.metric_tails or run.console_tails or run.event_tails or run.manifest):
        return "samples", ""
    idle = now - run.written if run.written else 0.0
    pace = run.step_seconds or 0.0
    silent = idle > max(stall_seconds, stall_factor * pace)
    declared = str(run.manifest.get("state", ""))
    if declared in ("finished", "failed", "interrupted"):
        attempts = run.manifest.get("attempts")
        last = attempts[-1] if isinstance(attempts, list) and attempts else {}
        code = last.get("exit_code") if isinstance(last, dict) else None
        return declared, words["exit"].format(code=code) if code else ""
    if declared:
        pid = run.manifest.get("pid")
        if isinstance(pid, int) and run.manifest.get("host") == socket.gethostname() and not _alive(pid):
            return "failed", words["gone"].format(pid=pid)
        return ("stalled", words["silent"].format(idle=idle, pace=pace)) if silent else ("running", "")
    if run.facts.error and idle > 10:
        return "failed", run.facts.error
    if run.facts.total_steps and (run.facts.at or 0) >= run.facts.total_steps:
        return "finished", ""
    return ("ended", words["unknown"]) if silent else ("running", "")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
