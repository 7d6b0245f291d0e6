"""The lab leaves nothing behind, whether it ends in order or is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.directory import sweep
from lab.processes import all_processes, namespace_id, processes_in, read_process
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.bench import Lab

_TESTS = Path(__file__).parents[1]

# A lab with a live mosh session, that says where it is and then waits to be killed.
_LAB_IN_USE = """
import signal
from lab.bench import Lab
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with Lab(rtt_ms=2) as lab:
    user = lab.add_user("alice")
    lab.terminal(lab.direct_mosh_argv(user)).wait_for(user.prompt)
    print(lab.directory, lab.near.net_namespace, lab.remote.room.net_namespace, flush=True)
    signal.pause()
"""


@pytest.fixture
def lab_in_use() -> Iterator[tuple[subprocess.Popen[str], Path, set[tuple[int, int]]]]:
    """A lab in another process: that process, the lab's directory, and the identities of what lives in it."""
    process = subprocess.Popen(
        [sys.executable, "-c", _LAB_IN_USE],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_TESTS)},
    )
    try:
        assert process.stdout is not None
        directory, *namespaces = process.stdout.readline().split()
        assert len(namespaces) == 2
        yield process, Path(directory), _identities(namespaces)
    finally:
        process.kill()
        process.communicate(timeout=20)


def _identities(namespaces: list[str]) -> set[tuple[int, int]]:
    """Return the identities of a mosh session's processes, and all else that lives in these namespaces."""
    processes = [process for namespace in namespaces for process in processes_in(namespace)]
    assert {"mosh-server", "mosh-client", "sshd"} <= {process.name for process in processes}
    return {process.identity for process in processes}


def _living() -> set[tuple[int, int]]:
    return {process.identity for process in all_processes()}


def test_closed_lab_leaves_nothing(make_lab: Callable[..., Lab]) -> None:
    """No process, and with it no namespace and no interface; no file."""
    lab = make_lab(rtt_ms=2)
    user = lab.add_user("alice")
    terminal = lab.terminal(lab.direct_mosh_argv(user))
    terminal.wait_for(user.prompt)
    inhabitants = _identities([lab.near.net_namespace, lab.remote.room.net_namespace])
    wan, person = read_process(lab.wan.pid), read_process(terminal.pid)
    assert wan is not None
    assert person is not None

    lab.close()

    assert not _living() & {*inhabitants, wan.identity, person.identity}
    assert not lab.directory.exists()


def test_interrupted_lab_leaves_nothing(
    lab_in_use: tuple[subprocess.Popen[str], Path, set[tuple[int, int]]],
) -> None:
    """Ctrl-C takes the lab down in order."""
    process, directory, inhabitants = lab_in_use

    process.send_signal(signal.SIGINT)
    process.wait(timeout=20)

    assert not directory.exists()
    assert not _living() & inhabitants


def test_killed_lab_takes_its_processes_along(
    lab_in_use: tuple[subprocess.Popen[str], Path, set[tuple[int, int]]],
) -> None:
    """SIGKILL leaves a directory, which the next lab sweeps up, and nothing that lives."""
    process, directory, inhabitants = lab_in_use

    process.kill()
    process.wait(timeout=20)

    wait_until(lambda: not _living() & inhabitants, "the rooms are empty")

    def is_swept_up() -> bool:
        sweep()  # unless another worker's lab is about to
        return not directory.exists()

    wait_until(is_swept_up, "the directory is gone")


def test_sweeping_spares_a_lab_in_use(lab: Lab) -> None:
    """Another lab that starts takes nothing away from this one."""
    sweep()

    assert lab.directory.exists()
    assert namespace_id(lab.near.pid, "net") == lab.near.net_namespace
