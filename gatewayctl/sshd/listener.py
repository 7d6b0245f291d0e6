"""sshd's listening sockets: checks that they can be opened, and sets their options."""

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
from helpers.protocol.errors import ListenError

_TCP_DELACK_MAX_US = 46  # Linux 6.15, linux/tcp.h; Python's socket has no name for it
_ACKNOWLEDGE_US = (
    10_000,
    20_000,
)  # the minimum is two ticks of the kernel's clock, which has 100 to 1000 ticks a second

_REMEDIES = {
    errno.EADDRNOTAVAIL: "this machine does not have the address: ip address",
    errno.EACCES: "a port below 1024 takes CAP_NET_BIND_SERVICE",
}

_LISTENS = "0A"  # proc_net_tcp(5); Linux, net/tcp_states.h, TCP_LISTEN


def check(address: str, port: int, *, held: tuple[str, int] | None = None) -> None:
    """Try to listen as sshd will: one address of a name is enough; for ``*`` both families are tried.

    sshd itself would log its own error and end; at a reload all sessions would end with it.

    Args:
        address: GATEWAY_HOST.
        port: GATEWAY_PORT.
        held: GATEWAY_HOST and GATEWAY_PORT of our own sshd, which still listens there.

    Raises:
        ListenError: sshd cannot listen. This may be temporary: another program may still use the port, or an address
            is not configured yet.
    """
    reason, listens, taken, failed = "", False, False, 0
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
            failed = exc.errno or 0
            reason = os.strerror(failed)
            taken = taken or exc.errno == errno.EADDRINUSE
        else:
            listens = True
    # A machine may have only one family, but no client of either family may reach another program.
    if listens and not (taken and address == "*"):
        return
    remedy = f"another program does: ss -ltnp 'sport = :{port}'" if taken else _REMEDIES.get(failed, "")
    msg = f"GATEWAY_PORT {port} on GATEWAY_HOST {address}: sshd cannot listen there ({reason})"
    raise ListenError("; ".join(filter(None, (msg, remedy))))


def set_socket_options(sshd: int, copy_descriptor: Callable[[int, int], int] = processes.copy_descriptor) -> None:
    """Set TCP_NODELAY and a short delayed-acknowledgement timeout on sshd's listening sockets.

    sshd sets TCP_NODELAY by itself when a terminal is requested (packet.c, ssh_packet_set_interactive). Before that,
    Nagle's algorithm holds the confirmation of the session channel back, behind a debug message about the key's
    options, until the client acknowledges that message: 40 ms with a client on Linux (measured with OpenSSH 9.2).
    Connections inherit the option from the listening socket (tcp(7), Linux).

    OpenSSH's client sends its service request only after its last message of the key exchange is acknowledged, which
    Linux would delay by 40 ms.

    Args:
        sshd: The pid of the listening process.
        copy_descriptor: Copies a process's file descriptor.

    Raises:
        OSError: The kernel denies access to its sockets; each login then takes as long as with any sshd.
    """
    for entry in Path(f"/proc/{sshd}/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            fd = copy_descriptor(sshd, int(entry.name))
        except OSError as exc:
            if exc.errno in {errno.ENOENT, errno.EBADF}:
                continue  # a connection's descriptor, closed meanwhile
            raise
        try:
            theirs = socket.socket(fileno=fd)
        except OSError:  # another file has that number now
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
        raise ListenError(msg) from exc
    return [(family, name) for family, _, _, _, name in found]


def _only_ours(address: str, port: int, held: tuple[str, int], family: socket.AddressFamily) -> bool:
    """Check whether only our own sshd prevents listening on another address, or the same."""
    if port != held[1]:
        return False
    if address == held[0]:
        return True
    ours = set()
    for kind, name in _resolve(*held):
        packed = socket.inet_pton(kind, str(name[0]))
        # In the kernel's notation: every four bytes in the machine's byte order.
        words = struct.unpack(f"={len(packed) // 4}I", packed)
        ours.add("".join(f"{word:08X}" for word in words) + f":{port:04X}")
    table = Path("/proc/net/tcp6" if family == socket.AF_INET6 else "/proc/net/tcp").read_text(encoding="ascii")
    rows = [line.split(maxsplit=4) for line in table.splitlines()[1:]]
    taken = {row[1] for row in rows if row[3] == _LISTENS and row[1].endswith(f":{port:04X}")}
    return taken <= ours
