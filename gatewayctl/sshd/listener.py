"""Where sshd is to listen: whether it can."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gatewayctl.runtime import processes
from helpers.protocol.errors import GatewayError

_TCP_DELACK_MAX_US = 46  # Linux 6.15, linux/tcp.h; Python's socket has no name for it
_ACKNOWLEDGE_US = (10_000, 20_000)  # the least is two ticks of the kernel's clock, of which it has 100 to 1000 a second

_LISTENS = "0A"  # proc_net_tcp(5); Linux, net/tcp_states.h, TCP_LISTEN


def check(address: str, port: int, *, held: tuple[str, int] | None = None) -> None:
    """Try to listen as sshd will: on every address of a name, and content with one; for ``*`` in both families.

    sshd itself would say it in lines of its own, and end; at a reload all sessions would end with it.

    Args:
        address: GATEWAY_HOST.
        port: GATEWAY_PORT.
        held: GATEWAY_HOST and GATEWAY_PORT with which our own sshd listens until it listens anew.

    Raises:
        GatewayError: It cannot. That may pass, as when another program is about to leave the port, or an address is yet
            to come.
    """
    reason, listens, taken = "", False, False
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
                listens = True
                continue
            reason = os.strerror(exc.errno or 0)
            taken = taken or exc.errno == errno.EADDRINUSE
        else:
            listens = True
    # A machine may have one family alone, but no client of either is to find another program.
    if listens and not (taken and address == "*"):
        return
    raise GatewayError(f"GATEWAY_PORT {port} on GATEWAY_HOST {address}: sshd cannot listen there ({reason})")


def send_at_once(sshd: int, borrow: Callable[[int, int], int] = processes.borrow) -> None:
    """Have sshd tell its clients each thing without waiting for them to acknowledge the one before (TCP_NODELAY).

    sshd does so by itself from the moment in which a terminal is asked for (packet.c, ssh_packet_set_interactive). The
    one answer before, that there is a channel for it, waits behind what was told of the key's options until the client
    acknowledges that: 40 ms where the client is Linux (measured with OpenSSH 9.2). Connections take it over from the
    socket that listens (tcp(7), Linux).

    And have the kernel acknowledge soon what clients say: OpenSSH's asks for no service before its last words of the
    key exchange are acknowledged, for which ours would wait 40 ms.

    Args:
        sshd: The process that listens.
        borrow: Gets a copy of a process's file descriptor.

    Raises:
        OSError: The kernel does not let us have its sockets; each login then takes as long as it does with any sshd.
    """
    for entry in Path(f"/proc/{sshd}/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            fd = borrow(sshd, int(entry.name))
        except OSError as exc:
            if exc.errno in {errno.ENOENT, errno.EBADF}:
                continue  # that of a connection, closed meanwhile
            raise
        try:
            theirs = socket.socket(fileno=fd)
        except OSError:  # another file has that number by now
            os.close(fd)
            continue
        with theirs:
            if theirs.family in {socket.AF_INET, socket.AF_INET6}:
                theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for longest_us in _ACKNOWLEDGE_US:
                    with suppress(OSError):
                        theirs.setsockopt(socket.IPPROTO_TCP, _TCP_DELACK_MAX_US, longest_us)
                        break


def _resolve(address: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    try:
        host = None if address == "*" else address
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
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
