"""``gatewayctl kick``: ends sessions, and locks a name."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from gatewayctl.commands.status_query import ask_broker, runtime_option
from gatewayctl.runtime import processes
from gatewayctl.runtime.directory import Runtime
from gatewayctl.supervisor import shutdown_notice
from helpers.broker.peer_credentials import start_of
from helpers.protocol.errors import UserNameError

TIMEOUT_S = 5.0
"""Longest wait for the broker, in seconds; it answers from memory."""

NOTICE_S = 0.2
"""Seconds for sshd to send the sentence to its client: there is no event for that."""

MAX_LOCK_MINUTES = 525_600

_SID = re.compile(r"[0-9]+-[0-9]+")


@click.command()
@runtime_option
@click.argument("who", metavar="SID|USER")
@click.option(
    "--message",
    default="an operator has ended this session",
    show_default=True,
    metavar="TEXT",
    help="The sentence that users read on their terminals.",
)
@click.option(
    "--lock",
    "minutes",
    type=click.IntRange(0, MAX_LOCK_MINUTES),
    metavar="MINUTES",
    help="Refuse the user name for so many minutes (1 to 525600); 0 lifts the lock.",
)
def kick(directory: Path, who: str, message: str, minutes: int | None) -> None:
    """End the session SID, or all sessions of USER.

    The user sees the message, mosh ends the session on the remote host, and the client's ssh ends. Only root may do
    this. Exits with 67 if there is no such session, and no lock was given.
    """
    found = [
        session
        for session in ask_broker(directory, "sessions", TIMEOUT_S)["sessions"]
        if who == (session["sid"] if _SID.fullmatch(who) else session["user"])
    ]
    if minutes is not None:
        user = found[0]["user"] if found else who
        ask_broker(directory, "lock", TIMEOUT_S, user=user, seconds=minutes * 60)
        click.echo(f"Locked {user} for {minutes} min." if minutes else f"Lifted the lock of {user}.")
    elif not found:
        msg = f"there is no open session {who}; gatewayctl sessions lists them"
        raise UserNameError(msg)
    if minutes == 0:
        return
    ended = _end(directory, found, message) if found else []
    for session in ended:
        click.echo(f"Ended {session['sid']} of {session['user']}.")


def _end(directory: Path, sessions: list[dict[str, Any]], message: str) -> list[dict[str, Any]]:
    """End sessions whose processes are still the same ones.

    Returns:
        The sessions that were ended.
    """
    sshd = Runtime(directory).sshd_pid()
    held = []
    for session in sessions:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(session["pid"])
            # Checked while the descriptor is open: it always refers to the same process, even if the pid is reused.
            if start_of(session["pid"]) == session["start"]:
                held.append((descriptor, session))
            else:
                os.close(descriptor)
    numbers = [(session["pid"], session["start"]) for _, session in held]
    ask_broker(directory, "kick", TIMEOUT_S, sessions=numbers)
    if sshd is not None:
        # mosh-client may be a session's child.
        pids = [pid for _, session in held for pid in (session["pid"], *processes.descendants(session["pid"]))]
        shutdown_notice.write(sshd, pids, message)
    time.sleep(NOTICE_S if held else 0)
    for descriptor, _ in held:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        os.close(descriptor)
    return [session for _, session in held]
