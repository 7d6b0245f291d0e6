"""``gatewayctl hash-password``: hashes a password for GATEWAY_PASSWORDS."""

from __future__ import annotations

import sys

import click

from gatewayctl.settings.passwords import hash_password as hashed
from helpers.protocol.errors import SettingsError


@click.command()
def hash_password() -> None:
    """Hash a password for GATEWAY_PASSWORDS.

    Prompts for the password twice on a terminal, else reads one line from standard input. It is never an argument.
    """
    if sys.stdin is None:  # standard input is closed
        password = ""
    elif sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    try:
        click.echo(hashed(password))
    except ValueError as exc:
        raise SettingsError(str(exc)) from None
