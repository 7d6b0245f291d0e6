"""``gatewayctl check-config``: checks the settings, and shows the values in effect."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from gatewayctl.commands.install import SERVICE_CONFIG
from gatewayctl.commands.serve import read_key
from gatewayctl.commands.settings_flags import secrets_note, settings_options
from gatewayctl.settings.metadata import describe
from helpers.protocol.errors import GatewayError, SettingsError
from helpers.ssh.known_hosts import KnownHosts

if TYPE_CHECKING:
    from collections.abc import Callable

    from gatewayctl.settings.model import Settings


@click.command(epilog=secrets_note())
@settings_options
@click.option("--json", "as_json", is_flag=True, help="Print every setting with its value and its source as JSON.")
def check_config(load: Callable[[], Settings], *, as_json: bool) -> None:
    """Check the settings and show the values in effect.

    Warnings go to standard error. Secrets are never printed, only whether they are set.
    """
    try:
        settings = load()
        check_key(settings)
    except SettingsError as error:
        raise SettingsError("; ".join([error.message, *unread_file()])) from error
    for warning in (*settings.warnings, *unknown_host(settings), *unread_file()):
        click.echo(f"gatewayctl: warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(effective(settings), indent=2))
        return
    remote = f"{settings.remote_host} port {settings.remote_port}"
    click.echo(f"OK: listens on {settings.gateway_host} port {settings.gateway_port}, users land on {remote}")


def unread_file() -> list[str]:
    """Return a note if the service's file exists, and no ``--config`` was given, so that it was not read."""
    given = click.get_current_context().params.get("config")
    if given is not None or not SERVICE_CONFIG.is_file():
        return []
    return [f"{SERVICE_CONFIG} was not read; to check it: gatewayctl check-config --config {SERVICE_CONFIG}"]


def check_key(settings: Settings) -> None:
    """Load the gateway's key as the broker will.

    Raises:
        SettingsError: The key is not valid or needs a passphrase, or its certificate is for another key.
    """
    key, certificate = read_key(settings)
    if key is not None:
        from helpers.broker.remote.connection import load_key  # noqa: PLC0415 - paramiko takes 0.2 s, and is needed only for a key

        load_key(key, certificate)


def unknown_host(settings: Settings) -> list[str]:
    """Return a warning if there is a known_hosts without a key of the remote.

    Raises:
        SettingsError: The file cannot be read.
    """
    path = settings.remote_known_hosts
    if settings.remote_ignore_host_key or not path.is_file():
        return []
    known = KnownHosts(path, settings.remote_host, settings.remote_port)
    try:
        trusted = known.keys().trusted
    except GatewayError as exc:
        raise SettingsError(f"REMOTE_KNOWN_HOSTS: {exc.message}") from exc
    return [] if trusted else [f"REMOTE_KNOWN_HOSTS {path} has no key of {known.name}: nobody gets in until it has"]


def effective(settings: Settings) -> dict[str, dict[str, object]]:
    """List every setting: its value, or for a secret whether it is set, and its source."""
    found: dict[str, dict[str, object]] = {}
    values = settings.model_dump(mode="json") | {"gateway_uid_range": "{}:{}".format(*settings.uid_range)}
    for info in describe(type(settings)):
        shown = {"set": values[info.name] is not None} if info.secret else {"value": values[info.name]}
        found[info.variable] = {**shown, "source": settings.origin(info.name)}
    return found
