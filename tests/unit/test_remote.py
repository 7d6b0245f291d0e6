"""Which of the remote's addresses is taken."""

from __future__ import annotations

import socket

import pytest

from helpers.broker.remote import Remote
from helpers.errors import RemoteLostError, RemoteRefusedError

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
