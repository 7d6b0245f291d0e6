"""Tells the service manager how far we are (sd_notify(3)), where there is one that wants to know."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress


def ready(warning: str | None = None) -> None:
    """Say that logins are taken; after `reloading`, that it is over.

    Args:
        warning: What ``systemctl status`` is to show; None for nothing.
    """
    _notify(f"READY=1\nSTATUS={warning or ''}")


def reloading() -> None:
    """Say that the settings are being read anew."""
    _notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """Say that no login is taken any more."""
    _notify("STOPPING=1")


def _notify(state: str) -> None:
    # Read each time and not kept: children never get it, since they have none of our environment.
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    # A service manager that is gone is no reason to go as well.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode("ascii"), "\0" + address[1:] if address.startswith("@") else address)
