"""The number of processes that the control groups still allow (cgroups(7); the kernel's documents on pids)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def processes_left(pid: int, *, proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return how many more processes and threads may be started in a process's control groups.

    Args:
        pid: The process.
        proc: The mount point of proc(5).
        root: The mount point of the control groups, version 1 or 2.

    Returns:
        The number; None if none of its groups has a visible limit.
    """
    left: list[int] = []
    for group in _groups(pid, proc, root):
        # "max" means no limit; the root group has no such file.
        with suppress(OSError, ValueError):
            most, now = (int((group / f"pids.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
            left.append(max(0, most - now))
    return min(left, default=None)


def _groups(pid: int, proc: Path, root: Path) -> Iterator[Path]:
    """List a process's groups and their parents, as visible here: a container's own group may be the root."""
    with suppress(OSError):
        for line in (proc / str(pid) / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            base = root if not controllers else root / "pids"
            if not controllers or "pids" in controllers.split(","):
                group = base / path.lstrip("/")
                yield from (each for each in (group, *group.parents) if each.is_relative_to(base))
