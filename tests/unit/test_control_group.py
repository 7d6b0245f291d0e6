"""How many processes are left: by the control groups of either version, as a host or a container shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatewayctl.runtime.control_group import processes_left

_V2, _V1 = "0::{path}\n", "12:cpu,cpuacct:/elsewhere\n8:pids:{path}\n0::/\n"


def _machine(tmp_path: Path, cgroup: str, groups: dict[str, tuple[str, str]]) -> int | None:
    """Build what the kernel shows: a process's groups, and limit and use of each group by its directory."""
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "7").mkdir(parents=True)
    (proc / "7/cgroup").write_text(cgroup)
    root.mkdir()
    for name, (most, now) in groups.items():
        directory = root / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "pids.max").write_text(most + "\n")
        (directory / "pids.current").write_text(now + "\n")
    return processes_left(7, proc=proc, root=root)


@pytest.mark.parametrize(
    ("cgroup", "groups", "left"),
    [
        (_V2.format(path="/system.slice/gateway.service"), {"system.slice/gateway.service": ("100", "90")}, 10),
        (_V2.format(path="/"), {"": ("2048", "48")}, 2000),
        (_V2.format(path="/a/b"), {"a": ("50", "45"), "a/b": ("100", "10")}, 5),
        (_V2.format(path="/a"), {"a": ("max", "10")}, None),
        (_V2.format(path="/a"), {}, None),
        (_V2.format(path="/a"), {"a": ("5", "7")}, 0),
        (_V1.format(path="/docker/1"), {"pids/docker/1": ("20", "3")}, 17),
        (_V1.format(path="/docker/1"), {"pids": ("20", "4")}, 16),
        (_V1.format(path="/"), {"pids": ("max", "4"), "elsewhere": ("1", "1")}, None),
        ("", {"": ("5", "1")}, None),
    ],
)
def test_what_is_left(tmp_path: Path, cgroup: str, groups: dict[str, tuple[str, str]], left: int | None) -> None:
    """The tightest of a process's own group and those around it counts; a group that is not in sight does not."""
    assert _machine(tmp_path, cgroup, groups) == left


def test_a_process_that_has_ended_has_no_limit(tmp_path: Path) -> None:
    """There is nothing to be read of it."""
    assert processes_left(8, proc=tmp_path, root=tmp_path) is None
