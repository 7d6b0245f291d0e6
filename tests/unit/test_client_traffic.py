"""The bytes of a client's connection, as the kernel tells them by both its ends."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from helpers.broker import client_traffic
from helpers.broker.client_traffic import Traffic


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_bytes_are_those_of_our_end(family: int, address: str) -> None:
    """What the client has sent is received; once the client has left there are none."""
    with closing(socket.socket(family)) as listener:
        listener.bind((address, 0))
        listener.listen()
        client = socket.create_connection(listener.getsockname()[:2])
        ours, _ = listener.accept()
        with client, ours:
            client.sendall(b"x" * 100)
            assert ours.recv(100, socket.MSG_WAITALL) == b"x" * 100
            ours.sendall(b"y" * 30)
            assert client.recv(30, socket.MSG_WAITALL) == b"y" * 30
            connection = " ".join(str(word) for end in (client.getsockname(), ours.getsockname()) for word in end[:2])
            assert client_traffic.read(connection) == Traffic(30, 100)
    assert client_traffic.read(connection) is None


@pytest.mark.parametrize(
    "connection",
    ["", "x", "127.0.0.1 1 127.0.0.1", "127.0.0.1 1 127.0.0.1 2", "127.0.0.1 x 127.0.0.1 2", "::1 99999 ::1 2"],
)
def test_what_is_no_connection_has_no_bytes(connection: str) -> None:
    """Nothing of it raises: the line in the log is written without them."""
    assert client_traffic.read(connection) is None
