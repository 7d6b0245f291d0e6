"""``gatewayctl doctor``: examines the whole way to a session, step by step."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gatewayctl.commands.serve import read_key
from gatewayctl.commands.settings_flags import secrets_note, settings_options
from gatewayctl.commands.status_query import status_of
from gatewayctl.doctor.gateway import Login, report_congestion_control
from gatewayctl.doctor.network import Network
from gatewayctl.doctor.remote import RemoteHost
from gatewayctl.doctor.report import FAIL, Step, examine
from gatewayctl.settings import validators
from helpers.broker.keys.remote_authorized_keys import AuthorizedKeysSources
from helpers.broker.remote.connection import Remote, load_key, silence_paramiko
from helpers.protocol.errors import UserNameError
from helpers.protocol.messages import is_user_name
from helpers.ssh.known_hosts import KnownHosts

if TYPE_CHECKING:
    from collections.abc import Callable

    from gatewayctl.settings.model import Settings

STATUS_TIMEOUT_S = 5.0
"""Longest wait for the running gateway's broker, in seconds."""


@click.command(epilog=secrets_note())
@settings_options
@click.option("--user", metavar="NAME", help="A user of the remote host's.  [default: no step that needs one]")
@click.option(
    "--identity",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="A private key of the user's, for a login through the gateway.  [default: no such login]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the steps as JSON, once all have ended.")
def doctor(load: Callable[[], Settings], *, user: str | None, identity: Path | None, as_json: bool) -> None:
    """Examine the way to a session on the remote host.

    Each row has ok, fail or skip, a step, the milliseconds that it took, and what was found, or what to do. The steps
    are the remote host's addresses, TCP, MTU, identification, algorithms and host key; as NAME, the gateway's login,
    the keys that count, mosh-server, its locale, UDP with small and large datagrams, the clock and sftp; and here the
    congestion control, and a login through the gateway itself. It takes the gateway's settings, changes nothing, and
    works while the gateway is stopped. Exits with the status of the first step that failed.
    """
    if user is not None and not is_user_name(user):
        msg = f"--user {user!r} is not a user name that the gateway admits"
        raise UserNameError(msg)
    silence_paramiko()
    rows = []
    remote, steps = _steps(load(), user, identity)
    try:
        for row in examine(steps):
            rows.append(row)
            if not as_json:
                ms = "-" if row.ms is None else f"{row.ms:.0f} ms"
                click.echo(f"{row.outcome:<4}  {row.step:<18}  {ms:>8}  {row.detail}")
    finally:
        remote.close()
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
    sys.exit(next((row.status for row in rows if row.outcome == FAIL), 0))


def _steps(settings: Settings, user: str | None, identity: Path | None) -> tuple[RemoteHost, list[Step]]:
    network = Network(settings.remote_host, settings.remote_port)
    known_hosts = None
    if not settings.remote_ignore_host_key:
        known_hosts = KnownHosts(settings.remote_known_hosts, settings.remote_host, settings.remote_port)
    text, certificate = read_key(settings)
    key = None if text is None else load_key(text, certificate)
    remote = RemoteHost(
        Remote(settings.remote_host, settings.remote_port, known_hosts, key),
        user,
        _sources(settings),
        settings.remote_mosh_server,
        settings.remote_mosh_ports,
    )
    directory = settings.gateway_runtime_dir
    login = Login(lambda: status_of(directory, STATUS_TIMEOUT_S), settings.gateway_host_key_path, user, identity)
    as_user = ("gateway's login",)
    return remote, [
        Step("addresses", network.resolve),
        Step("TCP", network.connect, ("addresses",)),
        Step("MTU", network.measure_mtu, ("TCP",)),
        Step("identification", network.identify, ("TCP",)),
        Step("algorithms", remote.agree, ("identification",)),
        Step("host key", remote.verify_host_key, ("algorithms",)),
        Step("gateway's login", remote.log_in, ("host key",)),
        Step("authorized_keys", remote.read_keys, as_user),
        Step("mosh-server", remote.find_mosh_server, as_user),
        Step("UTF-8 locale", remote.start_mosh_server, ("mosh-server",)),
        Step("UDP", lambda: remote.try_udp(network.round_trip_s), ("UTF-8 locale",)),
        Step("large datagrams", remote.report_large_datagrams, ("UDP",)),
        Step("clock", remote.compare_clocks, as_user),
        Step("sftp", remote.open_sftp, as_user),
        Step("congestion control", lambda: report_congestion_control(network.round_trip_s), ("TCP",)),
        Step("login", login.run, ("host key",)),
    ]


def _sources(settings: Settings) -> AuthorizedKeysSources | None:
    """Return where users' keys are on the remote host; None if the gateway does not read them there."""
    local = settings.gateway_authorized_keys_path or settings.gateway_authorized_keys_content
    if local or settings.gateway_accept_any_key:
        return None
    files = validators.authorized_keys_files(settings.remote_authorized_keys_file)
    return AuthorizedKeysSources(tuple(files), settings.remote_authorized_keys_command)
