"""How many processes the gateway's control groups still let it have (cgroups(7); the kernel's documents on pids)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def processes_left(pid: int, *, proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Tell how many more processes and threads may be started in a process's control groups.

    Args:
        pid: The process.
        proc: Where the kernel shows its processes.
        root: Where the control groups are mounted, of version 1 or 2.

    Returns:
        The number; None where none of its groups has a limit that can be seen.
    """
    left: list[int] = []
    for group in _groups(pid, proc, root):
        # "max" is no number, and stands for no limit; the outermost group has no such file.
        with suppress(OSError, ValueError):
            most, now = (int((group / f"pids.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
            left.append(max(0, most - now))
    return min(left, default=None)


def _groups(pid: int, proc: Path, root: Path) -> Iterator[Path]:
    """List a process's groups and what is around each, as seen from here: a container's own group may be the root."""
    with suppress(OSError):
        for line in (proc / str(pid) / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            base = root if not controllers else root / "pids"
            if not controllers or "pids" in controllers.split(","):
                group = base / path.lstrip("/")
                yield from (each for each in (group, *group.parents) if each.is_relative_to(base))
