"""Starts, watches and ends processes, as init does."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

from helpers.protocol.errors import SettingsError

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_PIDFD_GETFD = 438  # on every architecture (Linux, scripts/syscall.tbl); glibc has a name for it from 2.36 on

CLEAN_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    # No user can write there. A process without HOME looks its user up (Python 3.13, site), which would wait for a
    # broker if the machine uses nss-systemd for users as our sshd does.
    "HOME": "/",
}
"""The whole environment of a child: the settings, including secrets, stay in the supervisor."""


def become_reaper() -> None:
    """Become the parent of our children's orphans, as process 1 is anyway, so that all descendants are found.

    Raises:
        OSError: The kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def copy_descriptor(pid: int, fd: int) -> int:
    """Copy another process's file descriptor (pidfd_getfd(2), Linux 5.6).

    Args:
        pid: A process that we may trace: root's, without a capability that we lack (ptrace(2)).
        fd: Its file descriptor.

    Returns:
        Our copy, closed on exec.

    Raises:
        OSError: There is no such process or descriptor, or the kernel or its seccomp filter refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    try:
        ours = int(libc.syscall(_PIDFD_GETFD, process, fd, 0))
    finally:
        os.close(process)
    if ours < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return ours


def find(program: str, package: str) -> str:
    """Find a program that the gateway needs.

    Raises:
        SettingsError: The program is not installed; the sentence names the Debian package.
    """
    path = shutil.which(program, path=CLEAN_ENVIRONMENT["PATH"])
    if path is None:
        msg = f"{program} is not installed: apt-get install {package}"
        raise SettingsError(msg)
    return path


def spawn(argv: list[str], fds: dict[int, int]) -> int:
    """Start a child with a clean environment, in a process group of its own, so that Ctrl-C reaches only us.

    Args:
        argv: The command; its first word is searched for in the clean PATH.
        fds: The child's file descriptors, with ours that are copied to them; ours are 10 or above, or 0-2.

    Returns:
        The process id.
    """
    program = argv[0] if "/" in argv[0] else find(argv[0], "util-linux")
    return os.posix_spawn(
        program,
        argv,
        CLEAN_ENVIRONMENT,
        file_actions=[(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in fds.items()],
        setpgroup=0,
        setsigmask=(),
        setsigdef=[
            signal.SIGHUP,
            signal.SIGINT,
            signal.SIGTERM,
            signal.SIGPIPE,
            signal.SIGXFSZ,
            signal.SIGCHLD,
        ],
    )


def dup_at_least_10(fd: int) -> int:
    """Copy a file descriptor to a number of 10 or above, which `spawn` does not use in a child (0-7)."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)


def reap() -> dict[int, int]:
    """Reap every child that has ended.

    Returns:
        Their pids with their exit status, negative for the signal that ended them.
    """
    ended = {}
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended


def children(pid: int) -> list[int]:
    """List the children of a process (proc(5), task/children)."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, listing.read_text(encoding="ascii").split())
    return found


def descendants(pid: int) -> list[int]:
    """List the children of a process, their children and so on."""
    found: list[int] = []
    todo = [pid]
    while todo:
        ours = children(todo.pop())
        found += ours
        todo += ours
    return found


def is_roots(pid: int) -> bool:
    """Whether a process runs as root; False if it has ended."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid == 0
    except OSError:
        return False


def end(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended already."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
