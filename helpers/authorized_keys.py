"""sshd's AuthorizedKeysCommand: prints the lines that permit one offered key, or nothing.

It makes no decision. The broker answers with the lines; sshd applies their options and accepts or refuses the key.
It always exits 0: without output sshd refuses the key, and for any other status it would log an error (sshd_config(5)).

A first login waits here until the remote has answered, and so does every stranger's. cat(1) does the waiting, since
Python takes 2.6 MB more.
"""

from __future__ import annotations

import sys
from posix import dup2, execve  # not os, whose import takes a fifth of the key command's time

from helpers.protocol.broker_client import BrokerRequest
from helpers.protocol.errors import GatewayError

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from _socket import socket

PATIENCE_S = 0.05
"""Seconds that Python waits for the answer. A cached answer comes within some milliseconds. Any other waits for the
remote, or is a delayed refusal; starting cat (1 ms) is negligible in comparison."""

_CAT = "/bin/cat"


def main(argv: list[str]) -> int:
    """Request the lines for one offered key from the broker.

    Args:
        argv: The broker's socket, then sshd's ``%u`` (user name), ``%t`` (key type), ``%k`` (key in base64), and
            from OpenSSH 9.4 on ``%C``: sshd's address and port, then the client's (seen with OpenSSH 10.0 and 10.6;
            sshd_config(5) has them the other way round).

    Returns:
        0 in every case: see above.
    """
    try:
        socket_path, user, key_type, key = argv[:4]
        endpoints = " ".join(argv[4:]).split()
        connection = " ".join([*endpoints[2:], *endpoints[:2]])
        request = {"op": "authorized_keys", "user": user, "key_type": key_type, "key": key}
        _copy(BrokerRequest(socket_path, request | {"connection": connection}).connection)
    except GatewayError as error:
        # sshd logs a key command's standard error only at debug level; the broker, if it runs, has logged the reason.
        print(f"authorized_keys: {error.message}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"authorized_keys: {error}", file=sys.stderr)
    return 0


def _copy(connection: socket) -> None:
    """Copy the answer to standard output. If it does not come at once, this process becomes cat, which copies it."""
    connection.settimeout(PATIENCE_S)
    try:
        while chunk := connection.recv(65536):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    except TimeoutError:
        # cat has no timeout. The broker answers within 21 s, or has ended; and after LoginGraceTime sshd ends its key
        # command with itself (sshd.c, grace_alarm_handler).
        connection.settimeout(None)
        dup2(connection.fileno(), 0)
        execve(_CAT, ["cat"], {})
