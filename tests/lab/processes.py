"""Looking at processes through /proc, by pid and by namespace, never by name alone."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Process:
    """A live process (a zombie is none).

    Attributes:
        pid: Process id as the host sees it, fit for ``os.kill``.
        parent_pid: Its parent's, 0 when the parent is outside of what the host sees.
        name: The kernel's name for it, at most 15 bytes.
        uid: Effective user id.
        argv: Command line.
        started_ticks: When it started, in clock ticks since boot (``proc(5)``, /proc/PID/stat, field 22).
    """

    pid: int
    parent_pid: int
    name: str
    uid: int
    argv: tuple[str, ...]
    started_ticks: int

    @property
    def identity(self) -> tuple[int, int]:
        """What no other process ever has; ids of processes and of namespaces are given out again."""
        return self.pid, self.started_ticks


def namespace_id(pid: int, kind: str) -> str:
    """Return the name of a process's namespace of a kind (``net``, ``pid``, ...), such as ``net:[4026531840]``."""
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def read_process(pid: int) -> Process | None:
    """Read one process; None when there is none, or only its zombie."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
        command_line = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    if fields["State"].startswith(("Z", "X")):
        return None
    argv = tuple(command_line.rstrip("\0").split("\0"))
    # Counted from behind the name, which is field 2 and may hold anything.
    started_ticks = int(stat.rpartition(")")[2].split()[19])
    return Process(pid, int(fields["PPid"]), fields["Name"], int(fields["Uid"].split()[1]), argv, started_ticks)


def all_processes() -> list[Process]:
    """List what lives on the machine."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [process for process in map(read_process, pids) if process]


def processes_in(namespace: str) -> list[Process]:
    """List what lives in a namespace, named as ``namespace_id`` names it."""
    kind = namespace.split(":", 1)[0]
    found = []
    for process in all_processes():
        try:
            if namespace_id(process.pid, kind) == namespace:
                found.append(process)
        except OSError:  # it ended meanwhile, or is a kernel thread
            continue
    return found


def kill(processes: Iterable[Process]) -> None:
    """End processes by SIGKILL, one after the other; some end by themselves when one of the others is gone."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def child_of(pid: int) -> int | None:
    """Return the process id of a live child of a process, None when it has none."""
    return next((process.pid for process in all_processes() if process.parent_pid == pid), None)
