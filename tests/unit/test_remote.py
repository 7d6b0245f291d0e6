"""Which of the remote's addresses is taken, and where a command's output ends."""

from __future__ import annotations

import socket
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import paramiko
import pytest

from helpers.broker.connections import Completed
from helpers.broker.remote import Connection, Remote
from helpers.broker.transport import PipelinedTransport
from helpers.errors import RemoteLostError, RemoteRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

_REMOTE = Remote("remote.example", 22, None, None)


def _resolved(monkeypatch: pytest.MonkeyPatch, *found: tuple[int, tuple[str, int]]) -> None:
    """Have the remote's name mean some addresses, each with its family."""
    answer = [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", name) for family, name in found]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)


def test_a_family_that_the_kernel_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address of a kind for which there are no sockets, as IPv6 with ipv6.disable=1, keeps nobody from the other."""
    unsupported = (socket.AF_UNSPEC, ("192.0.2.1", 22))
    with socket.create_server(("127.0.0.1", 0)) as server:
        name = server.getsockname()
        _resolved(monkeypatch, unsupported, (socket.AF_INET, name))
        with _REMOTE._connect_tcp() as connected:
            assert connected.getpeername() == name

    for found in ((unsupported, (socket.AF_INET, name)), ((socket.AF_INET, name), unsupported)):
        _resolved(monkeypatch, *found)
        with pytest.raises((RemoteRefusedError, RemoteLostError)):
            _REMOTE._connect_tcp()


class _Server(paramiko.ServerInterface):
    """A remote that lets everybody in, and leaves to the test what a command does."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    def check_auth_none(self, username: str) -> int:
        del username
        return paramiko.common.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        del kind, chanid
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        del channel, command
        self.begun.set()
        return True


@pytest.fixture(scope="module")
def host_key() -> paramiko.PKey:
    """The remote's host key."""
    return paramiko.ECDSAKey.generate()


@pytest.fixture
def ends(host_key: paramiko.PKey) -> Iterator[tuple[Connection, paramiko.Transport, _Server]]:
    """A connection, and the remote's end of it."""
    near, far = socket.socketpair()
    server = _Server()
    with closing(paramiko.Transport(far)) as remote, closing(PipelinedTransport(near)) as transport:
        remote.add_server_key(host_key)
        remote.start_server(server=server, event=threading.Event())
        transport.start_client(timeout=10)
        transport.auth_none("alice")
        yield Connection(transport, "192.0.2.2"), remote, server


_SAID = {
    "nothing": "",
    "output": "o",
    "output and that it is over": "oe",
    "output and a status, which sshd sends when the program ends, before the rest of its output": "os",
}


@pytest.mark.parametrize("said", _SAID.values(), ids=_SAID.keys())
def test_output_that_breaks_off(ends: tuple[Connection, paramiko.Transport, _Server], said: str) -> None:
    """Where the connection breaks before the remote has said all, there is no output, and no status."""
    connection, remote, server = ends

    def die() -> None:
        _say(remote, server, said)
        remote.close()

    dying = threading.Thread(target=die)
    dying.start()
    with pytest.raises(RemoteLostError):
        connection.run("cat", max_bytes=1000, timeout_s=10)
    dying.join()


@pytest.mark.parametrize(("said", "status"), [("ose", 0), ("osec", 0), ("osc", 0), ("oc", None), ("oec", None)])
def test_output_that_is_whole(
    ends: tuple[Connection, paramiko.Transport, _Server], said: str, status: int | None
) -> None:
    """The remote says by EOF or by closing that it was all; a program that a signal ended has no status."""
    connection, remote, server = ends
    speaking = threading.Thread(target=_say, args=(remote, server, said))
    speaking.start()
    completed = connection.run("cat", max_bytes=1000, timeout_s=10)
    speaking.join()

    assert completed == Completed(b"output", b"", status)


def _say(remote: paramiko.Transport, server: _Server, said: str) -> None:
    """Write output (o), tell the status 0 (s), that the output is over (e), and close (c), in some order."""
    channel = remote.accept(10)
    assert channel is not None
    assert server.begun.wait(10)
    for what in said:
        if what == "o":
            channel.sendall(b"output")
        elif what == "s":
            channel.send_exit_status(0)
        elif what == "e":
            channel.shutdown_write()
        else:
            channel.close()
