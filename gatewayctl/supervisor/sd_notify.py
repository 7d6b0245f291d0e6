"""Notifies the service manager of our state (sd_notify(3)), if it has requested that."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress


def ready(warning: str | None = None) -> None:
    """Report that logins are accepted; after `reloading`, that the reload is complete.

    Args:
        warning: The text that ``systemctl status`` shows; None for none.
    """
    _notify(f"READY=1\nSTATUS={warning or ''}")


def reloading() -> None:
    """Report that the settings are being reloaded."""
    _notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping(timeout_s: float = 0.0) -> None:
    """Report that no more logins are accepted.

    Args:
        timeout_s: For how many seconds more than the unit's TimeoutStopSec the end may take.
    """
    _notify(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(timeout_s * 1e6)}" if timeout_s else "STOPPING=1")


def _notify(state: str) -> None:
    # Not removed from the environment: children get a clean one anyway.
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    # If the service manager does not listen, the gateway continues.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode("ascii"), "\0" + address[1:] if address.startswith("@") else address)
