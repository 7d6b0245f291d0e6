"""``gatewayctl healthcheck``: checks whether a running gateway accepts logins."""

from __future__ import annotations

import json
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from gatewayctl.commands.status_query import runtime_option, status_of
from gatewayctl.runtime.control_group import processes_left
from gatewayctl.runtime.directory import Runtime
from gatewayctl.settings.cross_checks import ANY_KEY_WARNING
from gatewayctl.sshd import namespace
from helpers.protocol.errors import GatewayError
from helpers.protocol.free_space import is_full

TIMEOUT_S = 3.0
"""Longest wait for each of the three checks, in seconds; together they take 20 ms, without Python's start."""

MIN_PROCESSES = 16
"""Processes and threads that must be available to the gateway: a login takes six."""

_ANSWERS = (b"SSH-2.0-", b"Exceeded MaxStartups")
"""sshd's identification (RFC 4253, 4.2), or its answer to too many unauthenticated connections (sshd.c): a restart
would not help against these, and would end the sessions."""

UNHEALTHY = 1
"""Exit status that container engines treat as unhealthy; 2 is reserved there."""


@click.command()
@runtime_option
@click.option("--json", "as_json", is_flag=True, help="Print each check with its result as JSON.")
@click.option("--live", is_flag=True, help="Check only what a restart, which ends all sessions, would help against.")
def healthcheck(directory: Path, *, as_json: bool, live: bool) -> None:
    """Check whether a running gateway accepts logins.

    Checks the broker, sshd and the user database, 3 seconds each at most, free space in the runtime directory, and the
    number of processes left in the control group. No packet goes to the remote host. Exits with 0 if all checks pass;
    otherwise prints the failed check and exits with 1. Only root may do this.
    """
    checks, warning = check(Runtime(directory), live=live)
    failed = next((f"{name}: {result}" for name, result in checks.items() if result != "ok"), None)
    if as_json:
        warnings = [] if warning is None else [warning]
        click.echo(json.dumps({"healthy": failed is None, "checks": checks, "warnings": warnings}, indent=2))
    else:
        if warning is not None:
            click.echo(f"WARNING: {warning}")
        click.echo("healthy" if failed is None else f"unhealthy: {failed}")
    if failed is not None:
        sys.exit(UNHEALTHY)


def check(runtime: Runtime, *, live: bool = False) -> tuple[dict[str, str], str | None]:
    """Check the broker, sshd, the user database and free space; stop at the first failure.

    Args:
        runtime: The gateway's runtime directory.
        live: Leave out the directory's room, the control group and a drain: a restart would end the sessions, and none
            of these.

    Returns:
        Each check with "ok" or the problem; and a warning for the operator, if there is one.
    """
    checks: dict[str, str] = {}
    warning = None
    try:
        checks["broker"] = "did not answer"
        status = status_of(runtime.root, TIMEOUT_S)
        checks["broker"] = "ok"
        warning = ANY_KEY_WARNING if status["accept_any_key"] else None
        checks["sshd"] = _sshd(status["listen_address"], status["listen_port"])
        if checks["sshd"] == "ok":
            checks["users"] = _users(runtime, status)
        if checks.get("users") == "ok" and not live:
            checks["space"] = f"the runtime directory {runtime.root} is full" if is_full(runtime.root) else "ok"
        if checks.get("space") == "ok":
            checks["processes"] = _processes(runtime)
            checks["drain"] = "ok" if status["draining"] is None else f"accepts no new sessions: {status['draining']}"
    except GatewayError as error:
        checks["broker"] = error.message
    return checks, warning


def _sshd(address: str, port: int) -> str:
    """Read sshd's identification, and disconnect in an orderly way.

    The connection always comes from loopback, which sshd does not penalize (60-abuse.conf).
    """
    host = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - compared, not bound
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
            connection.connect(where)
            said = connection.recv(256)
            # A client that sends nothing, or leaves data unread, makes sshd log an error.
            with suppress(OSError):
                connection.sendall(b"SSH-2.0-healthcheck\r\n")
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
    except OSError as error:
        return f"port {port} on {host} does not answer ({error.strerror or error})"
    return "ok" if said.startswith(_ANSWERS) else f"port {port} on {host} does not speak SSH"


def _processes(runtime: Runtime) -> str:
    pid = runtime.sshd_pid()
    left = None if pid is None else processes_left(pid)
    if left is None or left >= MIN_PROCESSES:
        return "ok"
    return f"the gateway's control group lets it have {left} more processes or threads (pids.max)"


def _users(runtime: Runtime, status: dict[str, Any]) -> str:
    pid = runtime.sshd_pid()
    try:
        prefix = None if pid is None else namespace.in_namespace_of(pid)
    except OSError:
        prefix = None
    if prefix is None:
        return f"sshd's pid file {runtime.pid_file} is missing or stale"
    try:
        namespace.check_users(prefix, status["auth_uid"], TIMEOUT_S)
    except GatewayError as error:
        return error.message
    return "ok"
