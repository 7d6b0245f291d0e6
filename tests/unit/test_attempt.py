"""A login that is under way can be given up at each moment, and no other connection with it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from helpers.broker.remote import tcp_info
from helpers.broker.remote.attempt import Attempt
from helpers.protocol.errors import RemoteLostError


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection's ends: ours, and the remote's."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        with far:
            far.settimeout(10)
            yield near, far


def test_given_up_before_it_connects(ends: tuple[socket.socket, socket.socket]) -> None:
    """Whoever makes the connection is told as soon as there is one, and so no handshake begins."""
    attempt = Attempt()
    attempt.check()
    attempt.give_up()
    with pytest.raises(RemoteLostError):
        attempt.connected(ends[0])


def test_given_up_during_the_handshake(ends: tuple[socket.socket, socket.socket]) -> None:
    """It is hung up at once, and once: a socket that is closed by then is none of ours."""
    near, far = ends
    attempt = Attempt()
    attempt.connected(near)
    attempt.give_up()
    assert far.recv(1) == b""
    near.close()
    attempt.give_up()
    with pytest.raises(RemoteLostError):
        attempt.check()


def test_given_up_when_it_is_made(ends: tuple[socket.socket, socket.socket]) -> None:
    """A connection that is in use is left alone."""
    near, far = ends
    attempt = Attempt()
    attempt.connected(near)
    attempt.succeeded()
    attempt.give_up()
    near.sendall(b"x")
    assert far.recv(1) == b"x"
    assert not attempt.is_losing(0.0)


def test_a_connection_that_loses_nothing_is_not_unlucky(ends: tuple[socket.socket, socket.socket]) -> None:
    """Nor is one that is not made yet, or is closed; the kernel tells how long a round trip takes."""
    near, far = ends
    attempt = Attempt()
    assert not attempt.is_losing(0.0)
    attempt.connected(near)
    near.sendall(b"x")
    assert far.recv(1) == b"x"
    assert not attempt.is_losing(0.0)
    assert tcp_info.read(near).round_trip_s > 0
    near.close()
    assert not attempt.is_losing(0.0)
    assert tcp_info.read(near) == tcp_info.TcpInfo(0.0, unacknowledged=False, lost_packets=False)
