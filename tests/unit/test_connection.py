"""Which of the remote's addresses is taken, where a command's output ends, and what a remote may not do."""

from __future__ import annotations

import select
import socket
import struct
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import paramiko
import pytest

from helpers.broker.remote.connection import Connection, Remote
from helpers.broker.remote.pipelined_transport import PipelinedTransport
from helpers.broker.remote.pool import Completed
from helpers.protocol.errors import RemoteLostError, RemoteRefusedError
from lab.waiting import wait_until

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
        connected, address = _REMOTE._connect_tcp()
        with connected:
            assert connected.getpeername() == name
            assert address == "127.0.0.1"

    for found in ((unsupported, (socket.AF_INET, name)), ((socket.AF_INET, name), unsupported)):
        _resolved(monkeypatch, *found)
        with pytest.raises((RemoteRefusedError, RemoteLostError)):
            _REMOTE._connect_tcp()


@pytest.fixture
def listener() -> Iterator[tuple[socket.socket, Remote]]:
    """A port, and the remote whose it is; its host key is not looked at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server, Remote("127.0.0.1", server.getsockname()[1], None, paramiko.ECDSAKey.generate())


def test_a_remote_that_hangs_up_at_once(
    listener: tuple[socket.socket, Remote], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A balancer in front of an sshd that is down accepts and resets, at times before we look: that is no fault."""
    server, remote = listener
    connect_tcp = Remote._connect_tcp

    def and_be_reset(self: Remote) -> object:
        connected = connect_tcp(self)
        peer, _ = server.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        hung_up = select.poll()
        hung_up.register(connected[0], select.POLLIN)
        assert hung_up.poll(10_000)
        return connected

    monkeypatch.setattr(Remote, "_connect_tcp", and_be_reset)
    with pytest.raises(RemoteLostError, match="broke off the SSH handshake"):
        remote.connect("alice")


def _packet(length: int, padding: int, rest: bytes) -> bytes:
    return b"SSH-2.0-x\r\n" + struct.pack(">IB", length, padding) + rest


@pytest.mark.parametrize(
    ("said", "then"),
    [
        (b"SSH-2.0-", b"x" * 4096),
        (b"", b"hello\r\n" * 512),
        (_packet(0x7FFFFFFC, 4, b""), bytes(65536)),
        (_packet(12, 11, bytes(11)), b""),
        (_packet(44, 4, b"\x14" + bytes(16) + struct.pack(">I", 2) + b"\xff\xfe" + bytes(20)), b""),
    ],
    ids=["an identification without end", "lines without end", "a packet of 2 GiB", "no message", "no text"],
)
def test_a_remote_that_makes_no_sense(listener: tuple[socket.socket, Remote], said: bytes, then: bytes) -> None:
    """Whoever answers in the remote's place is hung up on before it fills the memory, and is to blame, not we."""
    server, remote = listener
    sent = 0

    def talk() -> None:
        nonlocal sent
        peer, _ = server.accept()
        with peer, suppress(OSError):
            peer.sendall(said)
            while then and sent < 64 * 1024 * 1024:
                peer.sendall(then)
                sent += len(then)
            while peer.recv(4096):
                pass

    talking = threading.Thread(target=talk)
    talking.start()
    with pytest.raises(RemoteLostError, match="broke off the SSH handshake"):
        remote.connect("alice")
    talking.join()
    assert sent < 64 * 1024 * 1024


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

    assert completed == Completed(b"output", b"", status, completed.marker)


def test_a_remote_with_extensions_without_number(ends: tuple[Connection, paramiko.Transport, _Server]) -> None:
    """Whoever says that 4 billion of them follow, which takes no host key that is known, keeps no thread busy."""
    connection, remote, _ = ends
    message = paramiko.Message()
    message.add_byte(bytes([7]))  # RFC 8308, SSH_MSG_EXT_INFO
    message.add_int(0xFFFFFFFF)
    remote.packetizer.send_message(message)
    wait_until(lambda: not connection.alive, "the gateway hangs up")


@pytest.mark.parametrize("kind", ["data", "stderr"])
def test_a_remote_that_sends_more_than_its_window(
    ends: tuple[Connection, paramiko.Transport, _Server], kind: str
) -> None:
    """What nobody has asked for, as on the channel that waits for the next command, takes no more than its window."""
    connection, remote, _ = ends
    asking = threading.Thread(target=connection.prepare, args=(10,))
    asking.start()
    channel = remote.accept(10)
    assert channel is not None
    asking.join()
    send = channel.sendall if kind == "data" else channel.sendall_stderr
    window = channel.out_window_size
    send(bytes(window))
    assert connection.alive

    channel.out_window_size = 64 * window
    with suppress(OSError, EOFError):  # hung up
        send(bytes(64 * window))
    wait_until(lambda: not connection.alive, "the gateway hangs up")


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
