"""Starts the Python processes of a CPU run by fork, with verl and vLLM already imported.

A run has about nine Python processes, and each would import the same modules for five to eight seconds, one
after the other, and keep a copy of them. Here one process imports them while Ray starts; ``fork_client.py``
stands in for the interpreter (Ray's ``runtime_env.py_executable``, multiprocessing's ``set_executable``) and has
its command run in a fork of that process, with its own arguments, environment, folder and open files.

    python -m common.cpu.forkserver SOCKET

One message per client: the request (JSON, with the client's open files attached). Two answers: the child's pid
and, when it ended, its wait status, four bytes each. A client that is killed takes its child with it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.cpu import vllm_patches
from common.system import end_with_parent

# Ray and what imports it (verl) stay out: it reads its worker's identity from the environment when it is imported.
PRELOAD = (
    "torch.distributed.fsdp",
    "torch._dynamo",
    "torch._inductor.lowering",
    "tensordict",
    "transformers.models.llama.modeling_llama",
    "datasets",
    "peft",
    "hydra",
    "compressed_tensors",
    "torchdata.stateful_dataloader",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.worker.cpu_worker",
)
MAX_FILES = 253  # the kernel's limit for one message
_FORK_SAFE_THREADS = {"jemalloc_bg_thd"}  # jemalloc starts its own anew in the child


@dataclass
class Request:
    """A command to run: what the client's own process looked like."""

    argv: list[str]
    environment: dict[str, str]
    folder: str
    files: list[int]  # the numbers that the attached files had


def preload() -> dict[str, str]:
    """Import everything; returns the environment variables that the imports set."""
    before = dict(os.environ)
    # Before vLLM, whose modules copy the names that this changes.
    vllm_patches.register()
    for name in PRELOAD:
        importlib.import_module(name)
    if "ray" in sys.modules:
        sys.exit("forkserver: one of the preloaded modules imports ray; every process imports for itself")
    gc.collect()
    # Objects that no collection ever touches stay shared between all children.
    gc.freeze()
    return {name: value for name, value in os.environ.items() if before.get(name) != value}


def unsafe_threads() -> list[str]:
    """Names of native threads that a fork would lose."""
    own = threading.get_native_id()
    names = []
    for task in Path("/proc/self/task").iterdir():
        name = (task / "comm").read_text().strip()
        if int(task.name) != own and name not in _FORK_SAFE_THREADS:
            names.append(name)
    return names


def receive(client: socket.socket) -> tuple[Request, list[int]]:
    """The request of a client and its files, under new numbers."""
    size, files = struct.unpack("!I", client.recv(4, socket.MSG_WAITALL))[0], []
    data = b""
    while len(data) < size:
        part, attached, _, _ = socket.recv_fds(client, size - len(data), MAX_FILES)
        if not part:
            raise ConnectionError("the client ended in the middle of its request")
        data += part
        files += attached
    return Request(**json.loads(data)), files


class Server:
    """The loop: takes requests, forks, reports ends. ``run`` returns only in a child, with its request."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(64)
        self.clients: dict[int, socket.socket] = {}  # by the child's pid
        self.selector = selectors.DefaultSelector()
        self.wake_read, self.wake_write = socket.socketpair()
        for end in (self.wake_read, self.wake_write):
            end.setblocking(False)

    def run(self) -> Request:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake_write.fileno())
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(self.wake_read, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    request = self.accept()
                    if request:
                        return request
                elif key.fileobj is self.wake_read:
                    self.wake_read.recv(4096)
                    self.reap()
                else:
                    self.lost(key.data)

    def accept(self) -> Request | None:
        """Fork for the next client; the request in the child, None in the server."""
        client, _ = self.listener.accept()
        try:
            request, files = receive(client)
        except (OSError, ValueError, struct.error):
            client.close()
            return None
        pid = os.fork()
        if pid == 0:
            self.become(request, files, client)
            return request
        for number in files:
            os.close(number)
        with contextlib.suppress(OSError):  # killed meanwhile: the selector tells
            client.sendall(struct.pack("!i", pid))
        self.clients[pid] = client
        self.selector.register(client, selectors.EVENT_READ, pid)
        return None

    def become(self, request: Request, files: list[int], client: socket.socket) -> None:
        """In the child: only the client's files stay open, under their own numbers."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        for end in (self.listener, self.wake_read, self.wake_write, client, *self.clients.values()):
            end.close()
        # First out of the way of every number that is wanted, then into place.
        safe = max([*request.files, *files, 2]) + 1
        moved: list[int] = []
        for number in files:
            os.dup2(number, safe + len(moved), inheritable=False)
            moved.append(safe + len(moved))
            os.close(number)
        for source, target in zip(moved, request.files, strict=True):
            os.dup2(source, target)
            os.close(source)

    def reap(self) -> None:
        """Tell the clients of children that ended."""
        while self.clients:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            client = self.clients.pop(pid)
            self.selector.unregister(client)
            with contextlib.suppress(OSError):
                client.sendall(struct.pack("!i", status))
            client.close()

    def lost(self, pid: int) -> None:
        """A client was killed: so is its child."""
        self.selector.unregister(self.clients[pid])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.clients.pop(pid).close()


def run(request: Request, set_by_imports: dict[str, str]) -> None:
    """Run the command as the interpreter would: ``[options] script.py ...``, ``-c code ...`` or ``-m module ...``."""
    environment = {**set_by_imports, **request.environment}
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(request.folder)
    for path in reversed(environment.get("PYTHONPATH", "").split(os.pathsep)):
        if path and path not in sys.path:
            sys.path.insert(1, path)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # Forks of one state would all draw the same numbers; random does this by itself.
    import numpy

    numpy.random.seed()

    words = list(request.argv)
    while words and words[0].startswith("-") and words[0] not in ("-c", "-m"):
        words = words[2:] if words[0] in ("-X", "-W") else words[1:]
    if words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        main: Any = types.ModuleType("__main__")
        main.__builtins__ = __builtins__
        sys.modules["__main__"] = main
        exec(compile(words[1], "<string>", "exec"), main.__dict__)  # noqa: S102  (what -c means)
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


def main() -> None:
    """Entry point of ``python -m common.cpu.forkserver``."""
    end_with_parent(int(sys.argv[2]))
    # Clients may come before the imports are done; they wait in the queue.
    server = Server(Path(sys.argv[1]))
    set_by_imports = preload()
    threads = unsafe_threads()
    if threads:
        sys.exit(
            f"forkserver: a library started threads ({', '.join(threads)}); every process imports for itself"
        )
    run(server.run(), set_by_imports)


if __name__ == "__main__":
    main()
