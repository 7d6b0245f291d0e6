"""The steps up to the remote host's sshd: addresses, TCP, and its identification."""

from __future__ import annotations

import re
import socket
import time
from typing import Any

from helpers.broker.remote.addresses import Address, Addresses, numeric
from helpers.protocol.errors import (
    NoCommonAlgorithmError,
    RemoteLostError,
    RemoteRefusedError,
    RemoteTimeoutError,
)

TIMEOUT_S = 5.0
"""Longest time, in seconds, for a connection to one address, and for sshd's identification."""

IDENTIFICATION = re.compile(rb"SSH-2\.0-[\x20-\x7e]{1,240}")
"""RFC 4253 section 4.2."""

_MAX_BYTES = 8192
_IP_MTU, _IPV6_MTU = 14, 24  # Linux, linux/in.h and linux/in6.h; Python's socket has no names for them
MIN_MTU = 1280
"""mosh's datagrams have up to 1,280 bytes with their headers (mosh 1.4.0, network.h)."""


class Network:
    """The remote host in the network.

    Args:
        host: REMOTE_HOST.
        port: REMOTE_PORT.

    Attributes:
        addresses: Its addresses, once they are known.
        round_trip_s: The time that a connection took, in seconds.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port, self._lookup = host, port, Addresses(host, port)
        self.addresses: list[Address] = []
        self._connected: Address | None = None
        self.round_trip_s = 0.0
        self._mtu = 0

    def resolve(self) -> str:
        """Look the addresses up."""
        self.addresses = self._lookup.resolve()
        return ", ".join(map(numeric, self.addresses))

    def connect(self) -> str:
        """Connect to each address; one that answers is enough."""
        said, refused = [], True
        for address in self.addresses:
            began = time.monotonic()
            try:
                with self._open(address) as sock:
                    mtu = _mtu(sock)
            except OSError as exc:
                said.append(f"{numeric(address)} {exc.strerror or 'no answer'}")
                refused = refused and isinstance(exc, ConnectionRefusedError)
                continue
            if self._connected is None:
                self._connected, self.round_trip_s, self._mtu = address, time.monotonic() - began, mtu
            said.append(f"{numeric(address)} {(time.monotonic() - began) * 1000:.0f} ms")
        if self._connected is not None:
            return ", ".join(said)
        where = f"{self._host} port {self._port} ({', '.join(said)})"
        if refused:
            raise RemoteRefusedError(f"the remote host {where} refuses connections; is sshd running there?")
        raise RemoteTimeoutError(f"the remote host {where} cannot be reached; check the network and packet filters")

    def identify(self) -> str:
        """Read sshd's identification."""
        assert self._connected is not None  # noqa: S101 - it needs `connect`
        began = time.monotonic()
        received = b""
        with self._open(self._connected) as sock:
            while not (lines := [line for line in received.split(b"\n")[:-1] if line.startswith(b"SSH-")]):
                sock.settimeout(max(0.01, began + TIMEOUT_S - time.monotonic()))
                try:
                    chunk = sock.recv(_MAX_BYTES)
                except OSError as exc:
                    msg = f"the remote host {self._host} port {self._port} accepts connections and says nothing"
                    raise RemoteTimeoutError(f"{msg}; is it overloaded, or is another program on that port?") from exc
                received += chunk
                if not chunk or len(received) > _MAX_BYTES:
                    msg = f"the remote host {self._host} port {self._port} does not speak SSH"
                    raise RemoteLostError(f"{msg}; check REMOTE_PORT, and MaxStartups and PerSourcePenalties there")
        identification = lines[0].rstrip(b"\r")
        if not IDENTIFICATION.fullmatch(identification):
            msg = f"the remote host {self._host} port {self._port} does not speak SSH 2.0, which the gateway does"
            raise NoCommonAlgorithmError(msg)
        return identification.decode("ascii")

    def measure_mtu(self) -> str:
        """Return the path's MTU as far as TCP knows it."""
        if self._mtu < MIN_MTU:
            msg = f"the path's MTU is {self._mtu} bytes, and mosh's datagrams have up to {MIN_MTU}"
            raise RemoteLostError(f"{msg}; raise the MTU of the tunnel between the two")
        return f"{self._mtu} bytes"

    def _open(self, address: Address) -> socket.socket:
        family, where = address
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(TIMEOUT_S)
            sock.connect(where)
        except BaseException:
            sock.close()
            raise
        return sock


def _mtu(sock: socket.socket) -> int:
    level: tuple[Any, int] = (socket.IPPROTO_IPV6, _IPV6_MTU) if sock.family == socket.AF_INET6 else (0, _IP_MTU)
    return sock.getsockopt(*level)
