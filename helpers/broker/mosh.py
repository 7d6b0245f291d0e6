"""What is said to mosh-server, and what it says (mosh 1.4.0, mosh-server(1) and scripts/mosh.pl)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

from helpers.errors import GatewayError, MoshServerError, NoLocaleError, NoMoshServerError

MAX_LINE_BYTES = 512
"""Longest line, in bytes, that may be MOSH CONNECT; it is 45 bytes or fewer."""

LOCALE_FALLBACKS = ({"LANG": "C.UTF-8"}, {"LANG": "en_US.UTF-8"})
"""Tried in turn where the remote has no UTF-8 locale of its own and knows none of the client's: Debian and Fedora
have the first, macOS the second."""

_CONNECT = re.compile(rb"MOSH CONNECT ([1-9][0-9]{0,4}) ([A-Za-z0-9/+]{22})\r?")
_NOT_FOUND_STATUSES = frozenset({126, 127})  # POSIX sh: not executable, not found

_RUN_COMMAND = (
    "sh -c 'SSH_ORIGINAL_COMMAND=$(printf %s \"$GATEWAY_ORIGINAL\" | base64 -d);"
    ' test -z "$GATEWAY_ORIGINAL" || export SSH_ORIGINAL_COMMAND;'
    ' command=$(printf %s "$GATEWAY_COMMAND" | base64 -d); unset GATEWAY_COMMAND GATEWAY_ORIGINAL;'
    ' exec "${SHELL:-/bin/sh}" -c "$command"\''
)
"""Runs a command in the user's own shell, as sshd does (sshd(8)). What a client or a key file wrote reaches it as
base64 in the environment, so that no shell, POSIX or not, reads any of it on the way."""


@dataclass(frozen=True)
class MoshEndpoint:
    """Where a mosh-server listens.

    Attributes:
        port: Its UDP port, 1-65535.
        key: The 22-character session key (base64 of 128 bits): a secret.
    """

    port: int
    key: str

    def __repr__(self) -> str:
        """Leave the key out."""
        return f"MoshEndpoint(port={self.port})"


@dataclass(frozen=True)
class MoshRequest:
    """What a session wants of mosh-server.

    Attributes:
        colors: Colours of the terminal, 0-256.
        locale: LANG and LC_* of the client: names and values already known to be plain words.
        command: What to run instead of a login shell; None for the shell.
        original_command: What the client asked for, when a key's ``command=`` rules; None otherwise.
    """

    colors: int
    locale: Mapping[str, str]
    command: str | None = None
    original_command: str | None = None


def server_command(
    request: MoshRequest, locale: Mapping[str, str], *, address: str, program: str, ports: str, silence_timeout_s: int
) -> str:
    """Write the command line that the remote user's shell is to run.

    Args:
        request: What is wanted.
        locale: The locale to offer.
        address: The remote's numeric address, which tells the family of addresses to bind to: mosh-server would
            take IPv4 by itself. Not the address proper, which may be that of a proxy or a NAT.
        program: REMOTE_MOSH_SERVER.
        ports: REMOTE_MOSH_PORTS, ``P`` or ``P:P2``.
        silence_timeout_s: Seconds without a word from the client after which mosh-server ends.

    Returns:
        One line that means the same in every shell: no word of it needs quoting but the constant at the end.
    """
    variables = [f"MOSH_SERVER_NETWORK_TMOUT={silence_timeout_s}"]
    run = ""
    bind = "::" if ":" in address else "0.0.0.0"  # noqa: S104 - on the remote, where mosh binds so by itself
    if request.command is not None:
        variables.append(f"GATEWAY_COMMAND={_base64(request.command)}")
        variables.append(f"GATEWAY_ORIGINAL={_base64(request.original_command or '')}")
        run = f" -- {_RUN_COMMAND}"
    locales = "".join(f" -l {name}={value}" for name, value in locale.items())
    return f"env {' '.join(variables)} {program} new -i {bind} -c {request.colors} -p {ports}{locales}{run}"


def parse_mosh_connect(line: bytes) -> MoshEndpoint | None:
    """Read one line of mosh-server's output.

    Args:
        line: One line without its newline; anything over 512 bytes is no match.

    Returns:
        The endpoint, or None if the line is something else.
    """
    match = _CONNECT.fullmatch(line) if len(line) <= MAX_LINE_BYTES else None
    if match is None or int(match[1]) > 65535:  # noqa: PLR2004 - the largest port there is
        return None
    return MoshEndpoint(int(match[1]), match[2].decode("ascii"))


def failure(status: int | None, stderr: bytes, program: str) -> GatewayError:
    """Say why mosh-server gave no session.

    Args:
        status: The command's exit status, None if the remote told none.
        stderr: What it wrote to standard error, unchecked.
        program: REMOTE_MOSH_SERVER.
    """
    if b"UTF-8 native locale" in stderr:
        return NoLocaleError("the remote host has no UTF-8 locale, which mosh needs; install C.UTF-8 or en_US.UTF-8")
    if status in _NOT_FOUND_STATUSES:
        return NoMoshServerError(
            f"the remote host has no {program}; install mosh there, or set REMOTE_MOSH_SERVER to where it is"
        )
    printable = re.sub(r"[^\x20-\x7e]+", " ", stderr[-2000:].decode("ascii", "replace")).strip()
    reason = printable[:200] or f"exit status {status}"
    return MoshServerError(f"mosh-server gave no session on the remote host: {reason}")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode("ascii")
