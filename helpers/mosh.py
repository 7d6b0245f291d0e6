"""mosh-server's command line and its output (mosh 1.4.0, mosh-server(1) and scripts/mosh.pl)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

from helpers.protocol.errors import (
    GatewayError,
    HostKeyError,
    MoshServerError,
    NoCommonAlgorithmError,
    NoLocaleError,
    NoMoshServerError,
    PermissionDeniedError,
    RemoteLostError,
)
from helpers.remote_command import marked, marked_lines, printable, why_not_run

MAX_LINE_BYTES = 512
"""Longest line, in bytes, that is matched against MOSH CONNECT, which has at most 45 bytes."""

LOCALE_FALLBACKS = ({"LANG": "C.UTF-8"}, {"LANG": "en_US.UTF-8"})
"""Tried in turn if the remote has neither a UTF-8 locale of its own nor the client's: Debian and Fedora have the first,
macOS the second."""

_CONNECT = re.compile(rb"MOSH CONNECT ([1-9][0-9]{0,4}) ([A-Za-z0-9/+]{22})\r?")
_DETACHED = re.compile(rb"\[mosh-server detached, pid = ([1-9][0-9]{0,9})\]")
_END = (
    'echo; gw_name=$(cat /proc/"$1"/comm || ps -o comm= -p "$1");'
    ' case "$gw_name" in *mosh-server*) kill "$1";; esac; echo "$gw_mark end"'
)
_NOT_FOUND_STATUSES = frozenset({126, 127})  # POSIX sh: not executable, not found

_START = (
    'gw_out=$(exec "$@"); gw_status=$?; echo; echo "$gw_mark MOSH CONNECT ${gw_out##*MOSH CONNECT }"; exit $gw_status'
)
"""Starts mosh-server and prints its line behind the marker: see `helpers.remote_command`."""

_RUN_COMMAND = (
    'sh -c \'SSH_ORIGINAL_COMMAND=$(printf %s "$GATEWAY_ORIGINAL" | base64 -d);'
    ' test -z "$GATEWAY_ORIGINAL" || export SSH_ORIGINAL_COMMAND;'
    ' command=$(printf %s "$GATEWAY_COMMAND" | base64 -d); unset GATEWAY_COMMAND GATEWAY_ORIGINAL;'
    ' exec "${SHELL:-/bin/sh}" -c "$command"\''
)
"""Runs a `RunCommand` on the remote; a constant whose single-quoted text no shell interprets."""


@dataclass(frozen=True)
class MoshEndpoint:
    """The endpoint of a mosh-server.

    Attributes:
        port: Its UDP port, 1-65535.
        key: The 22-character session key (base64 of 128 bits): a secret.
    """

    port: int
    key: str

    def __repr__(self) -> str:
        """Omit the key."""
        return f"MoshEndpoint(port={self.port})"


@dataclass(frozen=True)
class Terminal:
    """The client's terminal, as passed to mosh-server.

    Attributes:
        colors: Its colours, 0-256.
        locale: LANG and LC_*, checked to be plain words; mosh-server uses them only if the remote has no UTF-8 locale
            of its own.
    """

    colors: int
    locale: Mapping[str, str]

    @property
    def locales(self) -> tuple[Mapping[str, str], ...]:
        """The locales to try in turn: the client's, if it has one, then the fallbacks."""
        return (self.locale, *LOCALE_FALLBACKS) if self.locale else LOCALE_FALLBACKS


@dataclass(frozen=True)
class RunCommand:
    """A command for the user's own shell on the remote, as sshd would run it (sshd(8)).

    Text from a client or a key file is sent as base64 in the environment, so that no shell, POSIX or not, interprets
    it on the way.

    Attributes:
        command: The command.
        original_command: The client's command if a key's ``command=`` replaces it; None otherwise.
    """

    command: str
    original_command: str | None = None

    @property
    def variables(self) -> list[str]:
        """The variables that contain it, as arguments of env(1)."""
        carried = {"GATEWAY_COMMAND": self.command, "GATEWAY_ORIGINAL": self.original_command or ""}
        return [f"{name}={_base64(text)}" for name, text in carried.items()]

    @property
    def line(self) -> str:
        """The command line that runs it."""
        return f"exec env {' '.join(self.variables)} {_RUN_COMMAND}"


def server_command(
    terminal: Terminal, *, address: str, program: str, ports: str, silence_timeout_s: int, run: RunCommand | None
) -> str:
    """Return the command line for the user's shell on the remote.

    Args:
        terminal: The client's terminal.
        address: The remote's numeric address, which selects the address family to bind to: mosh-server's default is
            IPv4. The address itself is not used, since it may be that of a proxy or a NAT.
        program: REMOTE_MOSH_SERVER.
        ports: REMOTE_MOSH_PORTS, ``P`` or ``P:P2``.
        silence_timeout_s: Seconds without a packet from the client after which mosh-server ends.
        run: The command to run instead of a login shell; None for the shell.

    Returns:
        One line that means the same in every shell: only constants in it need quoting. It reads a marker from standard
        input (`helpers.remote_command`).
    """
    variables = " ".join([f"MOSH_SERVER_NETWORK_TMOUT={silence_timeout_s}", *(run.variables if run else ())])
    locales = "".join(f" -l {name}={value}" for name, value in terminal.locale.items())
    bind = "::" if ":" in address else "0.0.0.0"  # noqa: S104 - on the remote, as is mosh's default
    options = f"-i {bind} -c {terminal.colors} -p {ports}{locales}"
    return marked(_START, f"env {variables} {program} new {options}{f' -- {_RUN_COMMAND}' if run else ''}")


def parse_mosh_connect(line: bytes) -> MoshEndpoint | None:
    """Read one line of mosh-server's output.

    Args:
        line: The text behind the marker, without its newline; more than 512 bytes do not match.

    Returns:
        The endpoint, or None if the line is something else.
    """
    match = _CONNECT.fullmatch(line) if len(line) <= MAX_LINE_BYTES else None
    if match is None or int(match[1]) > 65535:  # noqa: PLR2004 - the largest port
        return None
    return MoshEndpoint(int(match[1]), match[2].decode("ascii"))


def find_mosh_connect(output: bytes, marker: bytes) -> MoshEndpoint | None:
    """Find MOSH CONNECT behind the marker, and ignore the output of the user's start-up files."""
    return next(filter(None, map(parse_mosh_connect, marked_lines(output, marker))), None)


def find_server_pid(stderr: bytes) -> int | None:
    """Find the pid that mosh-server prints when it has started; None if there is none yet."""
    match = _DETACHED.search(stderr)
    return None if match is None else int(match[1])


def end_command(pid: int) -> str:
    """Return the command line that ends a user's mosh-server, and no other program that has its pid meanwhile."""
    return marked(_END, str(pid))


def failure(status: int | None, output: bytes, stderr: bytes, marker: bytes, program: str) -> GatewayError:
    """Explain why mosh-server started no session.

    Args:
        status: The command's exit status; None if a signal ended it.
        output: The command's standard output, unchecked.
        stderr: The command's standard error, unchecked.
        marker: The command's marker.
        program: REMOTE_MOSH_SERVER.
    """
    if not any(True for _ in marked_lines(output, marker)):
        return PermissionDeniedError(why_not_run(status, output or stderr))
    if b"UTF-8 native locale" in stderr:
        return NoLocaleError("the remote host has no UTF-8 locale, which mosh needs; install C.UTF-8 or en_US.UTF-8")
    if status in _NOT_FOUND_STATUSES:
        return NoMoshServerError(
            f"the remote host has no {program}; install mosh there, or set REMOTE_MOSH_SERVER to where it is"
        )
    reason = printable(stderr) or ("it was killed by a signal" if status is None else f"exit status {status}")
    return MoshServerError(f"mosh-server gave no session on the remote host: {reason}")


def ssh_failure(status: int, output: bytes, stderr: bytes, marker: bytes, program: str) -> GatewayError:
    """Explain why ssh, started with the user's own agent, started no session.

    Args:
        status: ssh's exit status; 255 is ssh's own, any other is mosh-server's (ssh(1)).
        output: mosh-server's standard output, unchecked.
        stderr: The standard error of both, unchecked.
        marker: The command's marker.
        program: REMOTE_MOSH_SERVER.
    """
    if status != 255:  # noqa: PLR2004
        return failure(status, output, stderr, marker, program)
    reason = printable(stderr) or "no reason given"
    if b"Host key verification failed" in stderr:
        return HostKeyError(f"the remote host's key is not the one that the gateway knows: {reason}")
    if b"Unable to negotiate with" in stderr:
        return NoCommonAlgorithmError(f"the remote host and the gateway have no algorithm in common: {reason}")
    methods = re.search(rb"Permission denied \(([!-'*-~]+)\)", stderr)
    if methods is not None and b"publickey" not in methods[1].split(b","):
        wanted = methods[1].decode("ascii")
        return PermissionDeniedError(f"the remote host wants {wanted} beside or instead of your agent's key: {reason}")
    if b"Permission denied" in stderr:
        return PermissionDeniedError(f"the remote host accepts no key of your agent: {reason}")
    if stderr.startswith(b"gateway: "):  # `helpers.happy_eyeballs`, before ssh talks to the remote
        reason = printable(stderr.partition(b"\n")[0].rpartition(b" reached: ")[2])
    return RemoteLostError(f"the remote host cannot be reached: {reason}")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode("ascii")
