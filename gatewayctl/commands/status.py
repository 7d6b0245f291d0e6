"""``gatewayctl status``: what a running gateway is doing."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gatewayctl.combinations import ANYONE
from gatewayctl.runtime import Runtime
from helpers.client import ask

TIMEOUT_S = 5.0
"""Longest wait for the broker, in seconds; it answers from memory."""

_WORDS = {
    "uptime_s": "seconds since the broker started",
    "connections": "connections to the remote",
    "lookups": "user lookups",
    "keys_offered": "keys offered",
    "keys_permitted": "keys permitted",
    "sessions": "sessions started",
    "failures": "sessions failed",
}


@click.command()
@click.option(
    "--gateway-runtime-dir",
    "directory",
    type=click.Path(path_type=Path),
    envvar="GATEWAY_RUNTIME_DIR",
    default=Path("/run/gateway"),
    show_default=True,
    metavar="DIRECTORY",
    help="The runtime directory of the gateway.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def status(directory: Path, *, as_json: bool) -> None:
    """Say what a running gateway is doing.

    Only root may ask. Ends with 71 when its broker does not answer.
    """
    found = ask(str(Runtime(directory).broker_socket), {"op": "status"}, TIMEOUT_S)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if found.get("accept_any_key"):
        click.echo(f"WARNING: {ANYONE}")
    width = max(map(len, _WORDS.values()))
    for name, words in _WORDS.items():
        click.echo(f"{words:{width}}  {found[name]}")
