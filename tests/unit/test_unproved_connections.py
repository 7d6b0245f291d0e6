"""Connections that any key opens: of one source fifty, of all 250, and none that the remote has let in."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gatewayctl.runtime import processes
from gatewayctl.supervisor.unproved_connections import LOOK_S, MAX_CLIENTS, MAX_FOR_SOURCE, UnprovedConnections
from lab.waiting import wait_until


class FakeSshd:
    """This process, in sshd's place: its children are the connections.

    Attributes:
        later_s: How much later it is than at the beginning, in seconds.
    """

    def __init__(self, stack: ExitStack, proxies: str = "") -> None:
        """Have no connection."""
        self._stack = stack
        self.later_s = 0.0
        self.clients = UnprovedConnections(os.getpid, proxies, lambda: self.later_s)

    def connect(self, argv: tuple[str, ...] = ("cat",), stdout: int | None = None) -> subprocess.Popen[bytes]:
        """Start a process for a connection, which waits until it is ended."""
        started = self._stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=stdout))
        self._stack.callback(started.kill)
        return started

    def ask(self, address: str | None, number: int = 1) -> list[str | None]:
        """Have connections come from an address; returns why each may not go on."""
        return [self.clients.refusal_reason(self.connect().pid, address) for _ in range(number)]


@pytest.fixture
def sshd() -> Iterator[FakeSshd]:
    """An sshd without connections."""
    with ExitStack() as stack:
        yield FakeSshd(stack)


@pytest.mark.parametrize(
    ("addresses", "source"),
    [(("192.0.2.7",), "192.0.2.7"), (("2001:db8::1", "2001:db8::ffff:0:0:1"), "2001:db8::/64")],
)
def test_one_source_has_fifty(sshd: FakeSshd, addresses: tuple[str, ...], source: str) -> None:
    """The next one is told so, and comes in when another one goes; other sources come in meanwhile."""
    first = sshd.connect()
    assert sshd.clients.refusal_reason(first.pid, addresses[0]) is None
    for number in range(MAX_FOR_SOURCE - 1):
        assert sshd.ask(addresses[number % len(addresses)]) == [None]
    sshd.later_s += LOOK_S
    again = sshd.connect()
    for address in addresses:
        assert sshd.clients.refusal_reason(again.pid, address) == (
            f"{source} has more than {MAX_FOR_SOURCE} connections that the remote has not accepted"
        )
    assert sshd.ask("192.0.2.8") == sshd.ask("2001:db8:0:1::1") == [None]
    first.kill()
    first.wait()
    assert sshd.clients.refusal_reason(again.pid, addresses[0]) is None


@pytest.mark.parametrize("name", ["ssh", "mosh-client"])
def test_a_connection_that_the_remote_has_let_in_is_not_counted(sshd: FakeSshd, tmp_path: Path, name: str) -> None:
    """It has a mosh-client, or an ssh, below it, for as long as it has."""
    program = tmp_path / name
    program.symlink_to("/bin/cat")
    proved = sshd.connect(("sh", "-c", f"echo; {program}; exec cat"), stdout=subprocess.PIPE)
    assert proved.stdout is not None
    proved.stdout.readline()
    assert sshd.clients.refusal_reason(proved.pid, "192.0.2.7") is None
    wait_until(lambda: _names_below(proved.pid) == [name], "it has it")
    assert sshd.ask("192.0.2.7", MAX_FOR_SOURCE) == [None] * MAX_FOR_SOURCE
    os.kill(processes.children(proved.pid)[0], signal.SIGKILL)
    wait_until(lambda: _names_below(proved.pid) == [], "it has it no more")
    sshd.later_s += LOOK_S
    (why,) = sshd.ask("192.0.2.8")
    assert why is None
    assert sshd.ask("192.0.2.7") != [None]


def _names_below(pid: int) -> list[str]:
    try:
        return [Path(f"/proc/{child}/comm").read_text().rstrip() for child in processes.children(pid)]
    except OSError:
        return ["one that has just ended"]


def test_all_sources_together_have_250() -> None:
    """Behind a proxy, or where the address cannot be seen, this is the one limit."""
    with ExitStack() as stack:
        behind = FakeSshd(stack, proxies="192.0.2.0/24,2001:db8::/32")
        assert behind.ask("192.0.2.7", MAX_CLIENTS) == [None] * MAX_CLIENTS
        assert behind.ask("2001:db8::7") == [
            f"there are more than {MAX_CLIENTS} connections that the remote has not accepted"
        ]
