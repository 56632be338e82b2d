# ruff: noqa: PTH109, PTH110, PTH208  (pathlib would double the start-up time)
"""Stands in for the Python interpreter: has its command run in a fork of ``forkserver.py``.

    python -S -E fork_client.py SOCKET PYTHON ARGUMENT ...     ARGUMENT ... as for PYTHON

Without a server behind the socket it becomes ``PYTHON ARGUMENT ...``, which is the same thing, slower.
Only the standard library, and as little of that as possible: this starts nine times per run.
"""

import array
import json
import os
import signal
import socket
import struct
import sys

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def open_files(own: int) -> list:
    """Numbers of this process's open files, without the connection."""
    return [
        n for n in map(int, os.listdir("/proc/self/fd")) if n != own and os.path.exists(f"/proc/self/fd/{n}")
    ]


def read(server: socket.socket) -> int:
    """The server's next answer."""
    answer = server.recv(4, socket.MSG_WAITALL)
    if len(answer) < 4:
        sys.exit("fork_client: the fork server has ended")
    return struct.unpack("!i", answer)[0]


def main() -> None:
    """Entry point."""
    path, python, *argv = sys.argv[1:]
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(path)
    except OSError:
        os.execv(python, [python, *argv])
    files = open_files(server.fileno())
    request = {"argv": argv, "environment": dict(os.environ), "folder": os.getcwd(), "files": files}
    data = json.dumps(request).encode()
    server.sendall(struct.pack("!I", len(data)))
    sent = server.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
    server.sendall(data[sent:])

    pid = read(server)
    for number in FORWARDED:
        signal.signal(number, lambda received, _frame: os.kill(pid, received))
    # Pipes must end with the child, not with this process.
    for number in files:
        os.close(number)
    status = read(server)
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) in FORWARDED:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


main()
