"""Starting, watching and ending processes: what a child inherits, and that none is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatewayctl.runtime import processes
from gatewayctl.runtime.processes import CLEAN_ENVIRONMENT, descendants, end, find, spawn
from helpers.protocol.errors import SettingsError

_ROOT = Path(processes.__file__).parent.parent


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Open a pipe whose writing end is out of the way of a child's descriptors."""
    read, write = os.pipe2(os.O_CLOEXEC)
    high = 50
    os.dup2(write, high, inheritable=False)
    os.close(write)
    yield read, high
    for fd in (read, high):
        os.close(fd)


def _output(argv: list[str], pipe: tuple[int, int]) -> tuple[list[str], int]:
    pid = spawn(argv, {1: pipe[1]})
    _, status = os.waitpid(pid, 0)
    return os.read(pipe[0], 65536).decode().splitlines(), os.waitstatus_to_exitcode(status)


def test_a_child_gets_a_clean_environment(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings, secrets among them, stay with the supervisor."""
    monkeypatch.setenv("GATEWAY_SSH_KEY_CONTENT", "secret")
    lines, status = _output(["env"], pipe)
    assert (dict(line.split("=", 1) for line in lines), status) == (CLEAN_ENVIRONMENT, 0)


def test_a_child_gets_the_descriptors_it_is_given_and_no_others(pipe: tuple[int, int]) -> None:
    """Ours become the numbers that were asked for; everything else of ours is closed to it."""
    lines, _ = _output(["ls", "/proc/self/fd"], pipe)
    # What whoever started this process lets its children have, and what ls opens, is not ours to close.
    inherited = {name for name in lines if name.isdigit() and _is_inheritable(int(name))}
    assert set(lines) - inherited <= {"0", "1", "2", str(_first_free(inherited))}


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def _first_free(taken: set[str]) -> int:
    return next(number for number in range(3, 1000) if str(number) not in taken)


def test_a_child_has_no_signal_blocked_or_ignored(pipe: tuple[int, int]) -> None:
    """The supervisor blocks signals and Python ignores SIGPIPE: neither may reach sshd and the sessions."""
    blocked = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        lines, _ = _output(["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"], pipe)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # 32 and 33 are the C library's own (signal(7)).
    assert [int(line.split()[1], 16) & 0x7FFFFFFF for line in lines] == [0, 0]


def test_a_child_has_a_process_group_of_its_own(pipe: tuple[int, int]) -> None:
    """Ctrl-C in the operator's terminal reaches the supervisor alone, which then ends the others in order."""
    lines, _ = _output(["sh", "-c", "echo $$; cut -d' ' -f5 /proc/$$/stat"], pipe)
    assert lines[0] == lines[1]
    assert int(lines[1]) != os.getpgrp()


def test_programs_are_found_on_our_path_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody put on the operator's PATH is not started as root; a path is taken as it is."""
    (tmp_path / "gateway-test-program").write_text("#!/bin/sh\n")
    (tmp_path / "gateway-test-program").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find("sh", "dash").endswith("/sh")
    with pytest.raises(SettingsError, match="apt-get install some-package"):
        find("gateway-test-program", "some-package")
    with pytest.raises(SettingsError, match="gateway-test-program is not installed"):
        spawn(["gateway-test-program"], {})
    with pytest.raises(FileNotFoundError):
        spawn([str(tmp_path / "missing")], {})


def test_ending_a_process_that_is_gone() -> None:
    """A process that has ended already needs no signal."""
    pid = spawn(["true"], {})
    os.waitpid(pid, 0)
    end(pid, signal.SIGTERM)


def test_ending_a_process() -> None:
    """A process that runs gets the signal."""
    pid = spawn(["sleep", "60"], {})
    end(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


_FAMILY = f"""
import os, signal, sys
sys.path.insert(0, {str(_ROOT)!r})
from gatewayctl.runtime.processes import become_reaper, descendants, reap, spawn
assert reap() == {{}}
become_reaper()
read, write = os.pipe()
# A shell that leaves a grandchild behind and ends: the grandchild must become ours.
pid = spawn(["sh", "-c", "sh -c 'echo $$; exec sleep 60' & read x <&0"], {{0: os.pipe()[0], 1: write}})
orphan = int(os.read(read, 64))
assert set(descendants(os.getpid())) == {{pid, orphan}}, descendants(os.getpid())
assert descendants(pid) == [orphan]
os.kill(pid, signal.SIGKILL)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
assert reap() == {{pid: -signal.SIGKILL}}
assert descendants(os.getpid()) == [orphan]
os.kill(orphan, signal.SIGTERM)
os.waitid(os.P_PID, orphan, os.WEXITED | os.WNOWAIT)
assert reap() == {{orphan: -signal.SIGTERM}}
failed = spawn(["sh", "-c", "exit 7"], {{}})
os.waitid(os.P_PID, failed, os.WEXITED | os.WNOWAIT)
assert reap() == {{failed: 7}}
assert descendants(os.getpid()) == []
"""


def test_no_descendant_is_lost() -> None:
    """Orphans become the supervisor's, each one that ends is collected with its status or its signal."""
    # In a process of its own: collecting every child is no way to treat a test runner's.
    done = subprocess.run([sys.executable, "-c", _FAMILY], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_that_is_gone_has_no_descendants() -> None:
    """A process that ended while its family was read has none."""
    pid = spawn(["true"], {})
    os.waitpid(pid, 0)
    assert descendants(pid) == []
