"""``gatewayctl check-config``: whether the settings are right, and which are in effect."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from gatewayctl.definition import describe
from gatewayctl.options import secrets_note, settings_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from gatewayctl.settings import Settings


@click.command(epilog=secrets_note())
@settings_options
@click.option("--json", "as_json", is_flag=True, help="Print every setting with its value and its source as JSON.")
def check_config(load: Callable[[], Settings], *, as_json: bool) -> None:
    """Check the settings and say what is in effect.

    What is odd but no error goes to standard error. Secrets are never printed, only whether they are set.
    """
    settings = load()
    for warning in settings.warnings:
        click.echo(f"gatewayctl: warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(effective(settings), indent=2))
        return
    remote = f"{settings.remote_host} port {settings.remote_port}"
    click.echo(f"OK: listens on {settings.gateway_host} port {settings.gateway_port}, users land on {remote}")


def effective(settings: Settings) -> dict[str, dict[str, object]]:
    """List every setting: its value, or for a secret whether it is set, and where that came from."""
    found: dict[str, dict[str, object]] = {}
    values = settings.model_dump(mode="json") | {"gateway_uid_range": "{}:{}".format(*settings.uid_range)}
    for info in describe(type(settings)):
        shown = {"set": values[info.name] is not None} if info.secret else {"value": values[info.name]}
        found[info.variable] = {**shown, "source": settings.origin(info.name)}
    return found
