"""A conversion worker: reads jobs from stdin, writes results to stdout, ends when stdin closes."""

from __future__ import annotations

import gc
import signal
import sys


def main() -> None:
    """Serve until the parent closes the pipe or dies. Exceptions travel back to the parent as objects."""
    import pyarrow as pa

    from common.data_utils.chunkwork import work
    from common.data_utils.pool import receive, send

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    pa.set_cpu_count(1)
    gc.disable()  # rows hold no cycles, and looking for some among so many objects takes time
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    while True:
        try:
            job = receive(source)
        except EOFError:
            return
        try:
            answer: object = work(*job)
        except Exception as problem:
            answer = problem
        send(sink, answer)


if __name__ == "__main__":
    main()
