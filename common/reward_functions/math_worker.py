"""Process that holds sympy and math-verify and forks one worker per connection it is handed.

Run as `python -m common.reward_functions.math_worker FD`: FD is a Unix socket; every message on it
carries one
connected socket, and the answer is the pid of the worker that serves it. Forking after the import makes a new
worker cost milliseconds instead of the seconds that sympy takes to import. It ends when the socket closes.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

MEMORY = 2 * 1024**3  # address space in bytes; 10**10**9 must fail, not swap
PR_SET_PDEATHSIG = 1


class OutOfTime(BaseException):
    """Not an Exception, so that no library handler swallows it."""


def _alarm(signum: int, frame: FrameType | None) -> None:
    raise OutOfTime


def make_equal() -> Callable[[str, str], bool]:
    """Import math-verify and return `equal(gold, answer)` for two LaTeX or plain strings."""
    import logging

    from math_verify import parse, verify
    from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

    logging.disable(logging.CRITICAL)
    how = (LatexExtractionConfig(), ExprExtractionConfig())

    def equal(gold: str, answer: str) -> bool:
        left = parse(f"${gold}$", extraction_config=how, parsing_timeout=None)
        right = parse(f"${answer}$", extraction_config=how, parsing_timeout=None)
        return bool(verify(left, right, timeout_seconds=None))

    return equal


def serve(connection: socket.socket, equal: Callable[[str, str], bool]) -> None:
    """Answer one JSON line per request: [gold, answer, seconds] -> [verdict or null, error text]."""
    signal.signal(signal.SIGALRM, _alarm)
    with connection.makefile("rw", encoding="utf-8", newline="\n") as stream:
        for line in stream:
            gold, answer, seconds = json.loads(line)
            reply: tuple[bool | None, str]
            try:
                try:
                    # Repeats, in case a library's cleanup code runs on after the first.
                    signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
                    reply = (equal(gold, answer), "")
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except OutOfTime:
                reply = (None, "out of time")
            except Exception as error:
                reply = (None, f"{type(error).__name__}: {error}"[:200])
            stream.write(json.dumps(reply) + "\n")
            stream.flush()


def main(descriptor: int) -> None:
    """Import once, then fork a worker for every socket received."""
    control = socket.socket(fileno=descriptor)
    equal = make_equal()
    equal(r"\frac{1}{2}", "0.5")  # builds the parser's tables before the first fork
    gc.collect()
    gc.set_threshold(100_000, 20, 100)  # sympy makes and drops much; workers are short-lived and limited
    gc.freeze()  # the collector then neither walks sympy's half million objects nor unshares their pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    control.sendall(b"ready\n")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            control.close()
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            try:
                serve(socket.socket(fileno=descriptors[0]), equal)
            finally:
                os._exit(0)
        os.close(descriptors[0])
        control.sendall(f"{pid}\n".encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
