"""Where sshd is to listen: whether it can."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path
from typing import Any

from helpers.errors import GatewayError

_LISTENS = "0A"  # proc_net_tcp(5); Linux, net/tcp_states.h, TCP_LISTEN


def check(address: str, port: int, *, held: tuple[str, int] | None = None) -> None:
    """Try to listen as sshd will: on every address of a name, and content with one.

    sshd itself would say it in lines of its own, and end; at a reload all sessions would end with it.

    Args:
        address: GATEWAY_HOST.
        port: GATEWAY_PORT.
        held: GATEWAY_HOST and GATEWAY_PORT with which our own sshd listens until it listens anew.

    Raises:
        GatewayError: It cannot. That may pass, as when another program is about to leave the port, or an address is yet
            to come.
    """
    reason = ""
    for family, name in _resolve(address, port):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as trial:
                # Both as sshd does (sshd.c, listen_on_addrs).
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                trial.bind(name)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE and held is not None and _only_ours(address, port, held, family):
                return
            reason = os.strerror(exc.errno or 0)
        else:
            return
    raise GatewayError(f"GATEWAY_PORT {port} on GATEWAY_HOST {address}: sshd cannot listen there ({reason})")


def _resolve(address: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        msg = f"GATEWAY_PORT {port} on GATEWAY_HOST {address}: the host has no address ({exc.strerror})"
        raise GatewayError(msg) from exc
    return [(family, name) for family, _, _, _, name in found]


def _only_ours(address: str, port: int, held: tuple[str, int], family: socket.AddressFamily) -> bool:
    """Tell whether nobody but our own sshd stands in the way of listening on another address, or the same."""
    if port != held[1]:
        return False
    if address == held[0]:
        return True
    ours = set()
    for kind, name in _resolve(*held):
        packed = socket.inet_pton(kind, str(name[0]))
        # As the kernel writes it: every four bytes as a number of the machine's.
        words = struct.unpack(f"={len(packed) // 4}I", packed)
        ours.add("".join(f"{word:08X}" for word in words) + f":{port:04X}")
    table = Path("/proc/net/tcp6" if family == socket.AF_INET6 else "/proc/net/tcp").read_text(encoding="ascii")
    rows = [line.split(maxsplit=4) for line in table.splitlines()[1:]]
    taken = {row[1] for row in rows if row[3] == _LISTENS and row[1].endswith(f":{port:04X}")}
    return taken <= ours
