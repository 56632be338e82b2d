"""The inside of the sandbox: put every guard in place, then become the untrusted program.

Run by path as `python -I -S guard.py JOB STATUS_FD`; imports the standard library only. JOB is a JSON
file (see
`host.py`). Anything that goes wrong before the program starts is written to STATUS_FD, which the
program never
inherits, so a program cannot pretend that the sandbox failed.

Processes: guard (waits) -> first of the new PID namespace (reaps) -> program.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 4, 38, 22
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_SPACES = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV = 4096, 16384, 1 << 18, 2, 4
_FIRST_UID, _UIDS = 2_000_000, 1_000_000  # far above accounts; one uid per run, so limits are not shared
_READABLE = (
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/urandom",
    "/dev/zero",
)


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


# ---- namespaces
def enter_namespaces() -> str:
    """Own mounts, processes, network, IPC and host name; '' when the kernel or container forbids them."""
    uid, gid = os.geteuid(), os.getegid()
    attempts = [(_SPACES, "as root")] if uid == 0 else []
    for flags, how in [*attempts, (_SPACES | _NEWUSER, "in a user namespace")]:
        if _LIBC.unshare(flags) == 0:
            if flags & _NEWUSER:
                _write("/proc/self/setgroups", "deny")
                _write("/proc/self/uid_map", f"{uid} {uid} 1")
                _write("/proc/self/gid_map", f"{gid} {gid} 1")
            return how
    return ""


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:  # noqa: PTH123 (pathlib would double the start-up time)
        file.write(text)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    encoded = [text.encode() for text in (source, target, kind)]
    _check(_LIBC.mount(*encoded, ctypes.c_ulong(flags), data.encode()), f"mount {target}")


def private_folder(path: str, megabytes: int) -> None:
    """A fresh tmpfs of limited size over `path`, seen by this namespace only."""
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={megabytes}m,mode=0755,nr_inodes=4096")


def open_way(prefixes: list[str]) -> None:
    """Make `prefixes` reachable without rights: a closed ancestor is covered by an empty folder.

    An interpreter below /root (pyenv, conda) is otherwise lost to a process that gave up root.
    """
    handles = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in prefixes if _closed_ancestor(path)}
    for prefix, handle in handles.items():
        closed = _closed_ancestor(prefix)
        if closed is not None:  # not yet covered for another prefix
            _mount("tmpfs", closed, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=0755")
        os.makedirs(prefix, exist_ok=True)  # noqa: PTH103
        _mount(f"/proc/self/fd/{handle}", prefix, "", _MS_BIND)
        os.close(handle)


def _closed_ancestor(path: str) -> "str | None":
    parts = path.strip("/").split("/")
    for count in range(1, len(parts) + 1):
        folder = "/" + "/".join(parts[:count])
        if os.path.isdir(folder) and not os.stat(folder).st_mode & 0o001:  # noqa: PTH112, PTH116
            return folder
    return None


# ---- files: Landlock
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # Landlock ABI -> number of file rights it knows
_FS_READ = 0b1101  # execute, read file, read folder
_FS_FILE_ONLY = 0b111 | 1 << 14 | 1 << 15  # rights that may be given on a plain file


def landlock(readable: list[str], writable: list[str]) -> int:
    """Reading below `readable`, everything below `writable`, nothing else; the ABI, 0 without Landlock."""
    abi = max(0, _LIBC.syscall(_CREATE_RULESET, None, 0, 1))
    if not abi:
        return 0
    every = (1 << _FS_BITS.get(abi, 16)) - 1
    network = 0b11 if abi >= 4 else 0  # bind and connect TCP
    scope = 0b11 if abi >= 6 else 0  # abstract sockets, signals to outside
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = struct.pack("QQQ", every, network, scope)[:size]
    handle = _check(_LIBC.syscall(_CREATE_RULESET, ruleset, size, 0), "landlock")
    for path, rights in [*((p, _FS_READ) for p in readable), *((p, every) for p in writable)]:
        if not os.path.exists(path):  # noqa: PTH110
            continue
        if not os.path.isdir(path):  # noqa: PTH112
            rights &= _FS_FILE_ONLY
        parent = os.open(path, os.O_PATH)
        _check(_LIBC.syscall(_ADD_RULE, handle, 1, struct.pack("=Qi", rights, parent), 0), f"landlock {path}")
        os.close(parent)
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _check(_LIBC.syscall(_RESTRICT_SELF, handle, 0), "landlock restrict")
    os.close(handle)
    return abi


# ---- system calls: seccomp
_ARCHES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
# name: (x86_64, aarch64); None where the architecture has no such call.
_ALWAYS_DENIED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104), "reboot": (169, 142),
    "swapon": (167, 224), "open_by_handle_at": (304, 265), "fsopen": (430, 430), "move_mount": (429, 429),
    "personality": (135, 92), "sched_setscheduler": (144, 119), "mbind": (237, 235),
}  # fmt: skip
_SIGNALLING = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
    "setsid": (112, 157), "setpgid": (109, 154),
    "setpriority": (141, 140),
}  # fmt: skip
_FORKING = {"fork": (57, None), "vfork": (58, None)}
_SOCKET, _CLONE, _CLONE3, _PRLIMIT = (41, 198), (56, 220), (435, 435), (302, 261)
_EPERM, _ENOSYS, _ALLOW = 0x00050000 | 1, 0x00050000 | 38, 0x7FFF0000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_AF_UNIX, _CLONE_THREAD = 1, 0x10000


def seccomp(deny_signals: bool, deny_forks: bool) -> bool:
    """Refuse sockets and calls that reach other processes or the kernel; False on an unknown machine."""
    machine = os.uname().machine
    if machine not in _ARCHES:
        return False
    arch, column = _ARCHES[machine]
    calls = {**_ALWAYS_DENIED, **(_SIGNALLING if deny_signals else {}), **(_FORKING if deny_forks else {})}
    numbers = [n for pair in calls.values() if (n := pair[column]) is not None]
    code = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _EPERM), (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":  # the x32 numbering would be a way around
        code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _EPERM)]
    for number in numbers:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    for number, allowed in ((_SOCKET[column], _AF_UNIX), (_PRLIMIT[column], 0)):  # 0: only its own limits
        code += [
            (_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_EQUAL, 1, 0, allowed),
            (_RETURN, 0, 0, _EPERM),
            (_RETURN, 0, 0, _ALLOW),
        ]
    if deny_forks:  # threads stay possible
        code += [
            (_EQUAL, 0, 1, _CLONE3[column]),
            (_RETURN, 0, 0, _ENOSYS),
            (_EQUAL, 0, 4, _CLONE[column]),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_ANY_BIT, 1, 0, _CLONE_THREAD),
            (_RETURN, 0, 0, _EPERM),
            (_RETURN, 0, 0, _ALLOW),
        ]
    code.append((_RETURN, 0, 0, _ALLOW))
    packed = b"".join(struct.pack("HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer))
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    return bool(_LIBC.prctl(_PR_SET_SECCOMP, 2, program, 0, 0) == 0)


# ---- limits and identity
def set_limits(job: dict) -> None:
    """CPU seconds, address space, file size, processes, open files, no core dumps."""
    megabyte = 1 << 20
    for which, soft, hard in (
        (resource.RLIMIT_CPU, job["cpu_seconds"], job["cpu_seconds"] + 1),
        (resource.RLIMIT_AS, job["memory_mb"] * megabyte, job["memory_mb"] * megabyte),
        (resource.RLIMIT_FSIZE, job["file_mb"] * megabyte, job["file_mb"] * megabyte),
        (resource.RLIMIT_NPROC, job["processes"], job["processes"]),
        (resource.RLIMIT_NOFILE, job["open_files"], job["open_files"]),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(which, (soft, hard))
    os.nice(5)


def drop_root(job: dict, uid: int) -> bool:
    """Become an account that owns nothing; False where the interpreter would then be out of reach."""
    if any(_closed_ancestor(prefix) for prefix in job["prefixes"]):
        return False
    os.chown(job["work"], uid, uid)
    try:
        os.setgroups([])
    except PermissionError:  # in a user namespace
        return False
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    return True


def become_program(job: dict, spaces: str, status: int) -> None:
    """Last steps in the innermost process; returns only for a probe."""
    is_root = os.geteuid() == 0
    dropped = is_root and drop_root(job, job["uid"])
    os.chdir(job["work"])
    # Root ignores the process limit, so where root could not be given up, forking is refused as a whole.
    deny_forks = is_root and not dropped
    set_limits(job)
    if not spaces:
        _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    readable = [*_READABLE, *job["prefixes"]]
    abi = landlock(readable, [job["work"], "/dev/null"])
    filtered = seccomp(deny_signals=not spaces, deny_forks=deny_forks)
    if not job["probe"]:
        os.execve(job["argv"][0], job["argv"], job["env"])
    guards = {
        "namespaces": f"on, {spaces} (mounts, processes, network, IPC)"
        if spaces
        else "OFF: not allowed here",
        "file access": f"on, Landlock ABI {abi}" if abi else "OFF: this kernel has no Landlock",
        "system calls": "on, seccomp" if filtered else "OFF: unknown machine type",
        "network": "on, own network namespace" if spaces else "on, seccomp" if filtered else "OFF",
        "identity": f"on, uid {os.geteuid()}" + (" (root given up)" if dropped else ""),
        "processes": "on, forking refused"
        if deny_forks and filtered
        else "OFF"
        if deny_forks
        else "on, limited",
        "limits": "on, CPU, memory, file size, open files",
        "private folder": "on, size-limited tmpfs"
        if spaces
        else "on, plain folder without a total size limit",
        "wall clock": "on, whole process group killed" + (", namespace with it" if spaces else ""),
    }
    os.write(1, json.dumps(guards).encode())
    os._exit(0)


# ---- the three processes
def main(job_path: str, status: int) -> int:
    """Set up, start the program, wait, and hand its exit code on (128 + signal for a killed one)."""
    os.set_inheritable(status, False)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with open(job_path, encoding="utf-8") as file:  # noqa: PTH123
        job = json.load(file)
    os.unlink(job_path)  # noqa: PTH108 (the program must not read its job)
    job["uid"] = _FIRST_UID + os.getpid() % _UIDS
    _write("/proc/self/oom_score_adj", "1000")
    spaces = enter_namespaces() if job["namespaces"] else ""
    if spaces:
        private_folder(job["work"], job["file_mb"])
        if os.geteuid() == 0 and spaces == "as root":
            open_way(job["prefixes"])
    for name, text in job["files"].items():
        with open(os.path.join(job["work"], name), "w", encoding="utf-8", errors="replace") as file:  # noqa: PTH118, PTH123
            file.write(text)
    pid = os.fork()
    if pid == 0:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if spaces:  # the first process of a namespace is immune to its own limits' signals
            inner = os.fork()
            if inner:
                os._exit(_wait(inner))
        become_program(job, spaces, status)
    os.close(status)
    return _wait(pid)


def _wait(pid: int) -> int:
    """Exit code of `pid`, reaping orphans of the namespace meanwhile."""
    while True:
        done, state = os.wait()
        if done == pid:
            return os.waitstatus_to_exitcode(state) if os.WIFEXITED(state) else 128 + os.WTERMSIG(state)


if __name__ == "__main__":
    _status = int(sys.argv[2])
    try:
        os._exit(main(sys.argv[1], _status))
    except BaseException as error:
        os.write(_status, f"{type(error).__name__}: {error}".encode())
        os._exit(125)
