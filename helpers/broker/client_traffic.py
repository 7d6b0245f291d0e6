"""The bytes of a client's TCP connection to our sshd, from the kernel (sock_diag(7)).

No process of a session counts bytes, and sshd logs them only for connections that are lost. The kernel counts them in
each socket, and tells every user who asks for it by both its ends.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

_NETLINK_SOCK_DIAG = 4  # Linux, linux/netlink.h; Python's socket has no name for it
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_INET_DIAG_INFO = 2
_ALL_STATES = 0xFFFFFFFF
# Linux, linux/netlink.h and linux/inet_diag.h: the header; the request; an attribute.
_HEADER, _REQUEST, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBBxI2s2s16s16sI8s"), struct.Struct("=HH")
_MESSAGE_BYTES = 72
"""Size of struct inet_diag_msg, after which the attributes begin."""

# Linux, linux/tcp.h, struct tcp_info, from 4.2 on: the two numbers after 120 bytes.
_BYTES = struct.Struct("=120xQQ")
_MAX_ANSWER_BYTES = 8192


@dataclass(frozen=True)
class Traffic:
    """The bytes of a TCP connection, those of the SSH protocol included.

    Attributes:
        sent: Bytes that the client has acknowledged.
        received: Bytes from the client.
    """

    sent: int
    received: int


def read(connection: str) -> Traffic | None:
    """Read the bytes of a client's connection.

    Args:
        connection: SSH_CONNECTION: the client's address and port, and ours (ssh(1)).

    Returns:
        The bytes; None if the connection has ended, or the kernel does not tell.
    """
    try:
        request = _request(*connection.split(" "))
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as sock:
            sock.settimeout(0)  # the kernel answers within send()
            sock.send(request)
            return _parse(sock.recv(_MAX_ANSWER_BYTES))
    except (OSError, ValueError, TypeError, struct.error):
        return None


def _request(client: str, client_port: str, server: str, server_port: str) -> bytes:
    family = socket.AF_INET6 if ":" in client else socket.AF_INET
    (theirs, interface), (ours, _) = _packed(family, client), _packed(family, server)
    ports = (struct.pack(">H", int(port)) for port in (server_port, client_port))
    body = _REQUEST.pack(
        family,
        socket.IPPROTO_TCP,
        1 << (_INET_DIAG_INFO - 1),
        _ALL_STATES,
        *ports,
        ours,
        theirs,
        interface,
        b"\xff" * 8,
    )
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + body


def _packed(family: int, address: str) -> tuple[bytes, int]:
    """Return an address in 16 bytes, and the number of the interface that a link-local one names."""
    number, _, zone = address.partition("%")
    interface = 0
    if zone:
        with suppress(OSError):
            interface = socket.if_nametoindex(zone)
    return socket.inet_pton(family, number).ljust(16, b"\0"), interface


def _parse(answer: bytes) -> Traffic | None:
    length, kind, *_ = _HEADER.unpack_from(answer)
    if kind != _SOCK_DIAG_BY_FAMILY:
        return None  # NLMSG_ERROR: there is no such socket
    offset = _HEADER.size + _MESSAGE_BYTES
    while offset + _ATTRIBUTE.size <= min(length, len(answer)):
        size, name = _ATTRIBUTE.unpack_from(answer, offset)
        if name == _INET_DIAG_INFO and size >= _ATTRIBUTE.size + _BYTES.size:
            traffic = Traffic(*_BYTES.unpack_from(answer, offset + _ATTRIBUTE.size))
            return traffic if traffic.received else None  # what is left of a closed socket has no numbers
        if size < _ATTRIBUTE.size:
            return None
        offset += (size + 3) & ~3
    return None
