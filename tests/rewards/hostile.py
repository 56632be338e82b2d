"""Programs that try to get out of the sandbox or take the machine down; each prints what it did."""

from __future__ import annotations

ENDLESS_LOOP = "while True: pass"

SLEEP = "import time; time.sleep(3600)"

FORK_BOMB = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0:
            while True:
                try:
                    os.fork()
                except OSError:
                    time.sleep(0.01)
        made += 1
except OSError as error:
    print("stopped after", made, "forks", flush=True)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""

THREAD_BOMB = """
import threading, time
made = 0
try:
    while made < 100_000:
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        made += 1
except (RuntimeError, MemoryError):
    print("stopped after", made, "threads", flush=True)
import os; os._exit(0)
"""

ALLOCATION = """
blocks = []
try:
    while len(blocks) < 10 * 16:
        blocks.append(bytearray(b"x") * (64 * 1024 * 1024))
    print("got 10 GB")
except MemoryError:
    print("refused after", len(blocks) * 64, "MB")
"""

ALLOCATION_BY_CHILDREN = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        block = bytearray(b"x") * (180 * 1024 * 1024)
        time.sleep(3600)
time.sleep(3600)
"""

INFINITE_OUTPUT = """
import os
while True:
    os.write(1, b"x" * 65536)
"""

FILL_DISK = """
import os
total = 0
try:
    for number in range(1000):
        with open(f"file{number}", "wb") as file:
            for _ in range(64):
                total += file.write(b"x" * (1 << 20))
except OSError as error:
    print("refused after", total >> 20, "MB")
"""

WRITE_OUTSIDE = """
import os, sys
for target in sys.stdin.read().split():
    for path in (target, os.path.join(target, "escaped")):
        try:
            with open(path, "a") as file:
                file.write("escaped")
            print("WROTE", path)
        except OSError:
            pass
    try:
        os.unlink(target); print("DELETED", target)
    except OSError:
        pass
print("done")
"""

READ_OUTSIDE = """
import os, sys
for target in sys.stdin.read().split():
    try:
        print("READ", os.listdir(target) if os.path.isdir(target) else open(target, "rb").read(9))
    except OSError:
        pass
print("done")
"""

NETWORK = """
import socket, sys
port = int(sys.stdin.read())
for family, address in ((socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))):
    try:
        with socket.socket(family) as s:
            s.settimeout(1)
            s.connect(address)
            print("CONNECTED")
    except OSError:
        pass
try:
    import socket
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.sendto(b"x", ("127.0.0.1", port))
    print("SENT")
except OSError:
    pass
print("done")
"""

OS_EXIT = "import os; print('4', flush=True); os._exit(0)"

KILL_PARENT = """
import os, signal, sys
victims = [int(word) for word in sys.stdin.read().split()]
for pid in [*victims, os.getppid(), -1, 0, 1]:
    if pid in (0, -1, 1) or pid == os.getppid():
        continue
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):
        try:
            os.kill(pid, number)
            print("KILLED", pid)
        except OSError:
            pass
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for pid in (os.getppid(), -1, 1):
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError:
        pass
print("done")
"""

READ_ENVIRONMENT = """
import glob, os, sys
print("ENVIRON", sorted(os.environ.items()))
for path in glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline"):
    try:
        print("READ", path, open(path, "rb").read())
    except OSError:
        pass
print("done")
"""

ESCAPE_GROUP = """
import os, time
if os.fork() == 0:
    try:
        os.setsid()
    except OSError:
        pass
    if os.fork() == 0:
        while True:
            time.sleep(0.05)
    os._exit(0)
print("parent done", flush=True)
"""

DEBUG_OTHERS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.stdin.read())
print("PTRACE", libc.ptrace(16, pid, 0, 0))
print("UNSHARE", libc.unshare(0x10000000))
print("MOUNT", libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
"""
