"""sshd's AuthorizedKeysCommand: prints the lines that let one offered key in, or nothing.

It decides nothing. The broker answers with the lines; sshd applies their options and gives the verdict.
It always exits 0: sshd takes no output as "no", and would log an error for any other status (sshd_config(5)).

A first login waits here until the remote has answered, and so does every stranger. What waits is cat(1) and not Python,
which takes 2.6 MB more.
"""

from __future__ import annotations

import sys
from posix import dup2, execve  # not os, whose import is a fifth of what the key command takes

from helpers.protocol.broker_client import Question
from helpers.protocol.errors import GatewayError

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from _socket import socket

PATIENCE_S = 0.05
"""Seconds that Python waits for the answer. What the broker remembers comes within some milliseconds; anything later
waits for the remote, or for a refusal's time, beside which starting cat (1 ms) is nothing."""

_CAT = "/bin/cat"


def main(argv: list[str]) -> int:
    """Ask the broker for the lines of one offered key.

    Args:
        argv: The broker's socket, then sshd's ``%u`` (user name), ``%t`` (key type), ``%k`` (key in base64), and
            from OpenSSH 9.4 on ``%C``: sshd's address and port, then the client's (seen with OpenSSH 10.0 and 10.6;
            sshd_config(5) has them the other way round).

    Returns:
        0, whatever happened: see above.
    """
    try:
        socket_path, user, key_type, key = argv[:4]
        endpoints = " ".join(argv[4:]).split()
        connection = " ".join([*endpoints[2:], *endpoints[:2]])
        request = {"op": "authorized_keys", "user": user, "key_type": key_type, "key": key}
        _copy(Question(socket_path, request | {"connection": connection}).connection)
    except GatewayError as error:
        # sshd logs a key command's standard error only at debug level; the broker, where it runs, has logged why.
        print(f"authorized_keys: {error.message}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"authorized_keys: {error}", file=sys.stderr)
    return 0


def _copy(connection: socket) -> None:
    """Copy the answer to standard output; what does not come at once is left to cat, which this process becomes."""
    connection.settimeout(PATIENCE_S)
    try:
        while chunk := connection.recv(65536):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    except TimeoutError:
        # Nothing bounds cat but the broker, which answers within 21 s or is gone, and sshd: it ends its key command
        # with itself after LoginGraceTime (sshd.c, grace_alarm_handler).
        connection.settimeout(None)
        dup2(connection.fileno(), 0)
        execve(_CAT, ["cat"], {})
