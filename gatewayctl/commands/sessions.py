"""``gatewayctl sessions``: lists the open sessions of a running gateway."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from gatewayctl.commands.status_query import ask_broker, runtime_option
from gatewayctl.runtime import terminals
from gatewayctl.runtime.directory import Runtime

TIMEOUT_S = 5.0
"""Longest wait for the broker, in seconds; it answers from memory."""

_COLUMNS = ("sid", "user", "client", "transport", "since", "for", "idle", "sent", "received")

_UNITS, _KIBI, _ONE_DIGIT = ("", "K", "M", "G", "T"), 1024, 10


@click.command()
@runtime_option
@click.option("--json", "as_json", is_flag=True, help="Print the sessions as JSON, with key, UDP port and stage.")
def sessions(directory: Path, *, as_json: bool) -> None:
    """List the open sessions of a running gateway.

    Each line has the session's id in the log, the user, the client's address and port, mosh or ssh, the time (UTC) at
    which the session began, its duration, the time since the last input on its terminal, and the bytes sent to the
    client and received from it. Only root may do this. Exits with 71 if the broker does not answer.
    """
    found = ask_broker(directory, "sessions", TIMEOUT_S)["sessions"]
    now = time.time()
    sshd = Runtime(directory).sshd_pid()
    for session in found:
        last_s = None if sshd is None else terminals.last_input_s(sshd, session["pid"])
        session["idle"] = None if last_s is None else max(0.0, round(now - max(last_s, session["since"]), 1))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = [_COLUMNS]
    for session in found:
        since = datetime.fromtimestamp(session["since"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        client = session["client"] or "-"
        rows.append(
            (
                session["sid"] or "-",
                session["user"],
                client,
                session["transport"],
                since,
                _age(now - session["since"]),
                "-" if session["idle"] is None else _age(session["idle"]),
                _size(session["sent"]),
                _size(session["received"]),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _size(count: int | None) -> str:
    """Format a number of bytes as ls(1) does with ``-h``: ``831``, ``4.2K``, ``17M``."""
    if count is None:
        return "-"
    size, unit = float(count), 0
    while size >= _KIBI and unit < len(_UNITS) - 1:
        size, unit = size / _KIBI, unit + 1
    return f"{size:.1f}{_UNITS[unit]}" if unit and size < _ONE_DIGIT else f"{size:.0f}{_UNITS[unit]}"


def _age(seconds: float) -> str:
    """Format a duration: ``45s``, ``12m``, ``3h05m``, ``2d04h``."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if minutes < 1:
        return f"{int(seconds)}s"
    if hours < 1:
        return f"{minutes}m"
    return f"{hours}h{minutes % 60:02}m" if days < 1 else f"{days}d{hours % 24:02}h"
