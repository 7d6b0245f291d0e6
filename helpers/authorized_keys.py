"""sshd's AuthorizedKeysCommand: prints the lines that let one offered key in, or nothing.

It decides nothing. The broker answers with the lines; sshd applies their options and gives the verdict.
It always exits 0: sshd takes no output as "no", and would log an error for any other status (sshd_config(5)).
"""

from __future__ import annotations

import sys

from helpers.client import ask
from helpers.errors import GatewayError


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
        answer = ask(socket_path, request | {"connection": connection})
        lines = "".join(f"{line}\n" for line in answer["lines"])
        sys.stdout.buffer.write(lines.encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
    except GatewayError as error:
        # sshd logs a key command's standard error only at debug level; the broker, where it runs, has logged why.
        print(f"authorized_keys: {error.message}", file=sys.stderr)
    except (OSError, ValueError, TypeError, KeyError) as error:
        print(f"authorized_keys: {error}", file=sys.stderr)
    return 0
