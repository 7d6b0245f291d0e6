"""``gatewayctl drain``: accept no new sessions, and leave open ones alone."""

from __future__ import annotations

from pathlib import Path

import click

from gatewayctl.commands.status_query import ask_broker, runtime_option

TIMEOUT_S = 5.0
"""Longest wait for the broker, in seconds; it answers from memory."""


@click.command()
@runtime_option
@click.option(
    "--message",
    default="the gateway accepts no new sessions at the moment; try again later",
    show_default=True,
    metavar="TEXT",
    help="The sentence that users read who log in meanwhile.",
)
@click.option("--off", is_flag=True, help="Accept sessions again.")
def drain(directory: Path, message: str, *, off: bool) -> None:
    """Accept no new sessions; open ones go on.

    Users who log in read the message, and the status is 75. healthcheck fails meanwhile, so that load balancers choose
    another gateway; healthcheck --live does not. It lasts until --off, also over a reload or a restart; a new container
    accepts sessions. Only root may do this.
    """
    ask_broker(directory, "drain", TIMEOUT_S, message=None if off else message)
    count = len(ask_broker(directory, "sessions", TIMEOUT_S)["sessions"])
    done = "Accepts sessions again." if off else "Accepts no new sessions."
    click.echo(f"{done} Open: {count}.")
