"""python -m common.watcher --run-dir DIR --tag TAG --parent PID: watch a run until SIGTERM or the parent's end."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path

from common.launcher.errors import exit_with


def main() -> None:
    """Entry point. The supervisor sends SIGTERM once run.json says how the run ended."""
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    # Ctrl-C is the supervisor's affair.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="python -m common.watcher", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--tag", required=True, help="of the attempt")
    parser.add_argument("--parent", type=int, required=True, help="the supervisor's process id")
    own = parser.parse_args()

    from common.watcher.settings import load
    from common.watcher.watch import watch

    def ended(seconds: float) -> bool:
        return over.wait(seconds) or os.getppid() != own.parent

    watch(own.run_dir, own.tag, own.parent, load(), ended)


if __name__ == "__main__":
    exit_with(main)
