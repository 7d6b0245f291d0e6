"""Where sshd is to listen: whether it can."""

from __future__ import annotations

import errno
import os
import socket

from helpers.errors import GatewayError


def check(address: str, port: int, *, held: int | None = None) -> None:
    """Try to listen as sshd will: on every address of a name, and content with one.

    sshd itself would say it in lines of its own, and end; at a reload all sessions would end with it.

    Args:
        address: GATEWAY_HOST.
        port: GATEWAY_PORT.
        held: A port on which our own sshd listens until it listens anew.

    Raises:
        GatewayError: It cannot. That may pass, as when another program is about to leave the port, or an address is yet
            to come.
    """
    where = f"GATEWAY_PORT {port} on GATEWAY_HOST {address}"
    reason = ""
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise GatewayError(f"{where}: the host has no address ({exc.strerror})") from exc
    for family, kind, protocol, _, name in found:
        try:
            with socket.socket(family, kind, protocol) as trial:
                # Both as sshd does (sshd.c, listen_on_addrs).
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                trial.bind(name)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE and port == held:
                return
            reason = os.strerror(exc.errno or 0)
        else:
            return
    raise GatewayError(f"{where}: sshd cannot listen there ({reason})")
