"""``gatewayctl status``: shows the status of a running gateway."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gatewayctl.commands.status_query import runtime_option, status_of
from gatewayctl.settings.cross_checks import ANY_KEY_WARNING

TIMEOUT_S = 5.0
"""Longest wait for the broker, in seconds; it answers from memory."""

_WORDS = {
    "uptime_s": "seconds since the broker started",
    "connections": "connections to the remote",
    "lookups": "user lookups",
    "keys_offered": "keys offered",
    "keys_permitted": "keys permitted",
    "key_files_read": "key files read",
    "sessions": "sessions started",
    "failures": "sessions failed",
}


@click.command()
@runtime_option
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def status(directory: Path, *, as_json: bool) -> None:
    """Show the status of a running gateway.

    Only root may do this. Exits with 71 if the broker does not answer.
    """
    found = status_of(directory, TIMEOUT_S)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if found.get("accept_any_key"):
        click.echo(f"WARNING: {ANY_KEY_WARNING}")
    if found.get("draining") is not None:
        click.echo(f"WARNING: draining: {found['draining']}")
    rows = {
        "version": found["version"],
        "remote host": f"{found['remote_host']} port {found['remote_port']}",
        "listens on": f"{found['listen_address']} port {found['listen_port']}",
        "lets in by": ", ".join(found["access"]),
        **{words: found[name] for name, words in _WORDS.items()},
    }
    for fact in found.get("udp", []):
        port, age = fact["udp_port"], round(fact["age_s"])
        rows[f"UDP to {fact['remote']} port {port}"] = f"{fact['outcome']} after {fact['ms']:.0f} ms, {age} s ago"
    width = max(map(len, rows))
    for words, value in rows.items():
        click.echo(f"{words:{width}}  {value}")
