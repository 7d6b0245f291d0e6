"""Requests to a gateway that runs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gatewayctl.runtime.directory import Runtime
from helpers.protocol.broker_client import ask
from helpers.protocol.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

runtime_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--gateway-runtime-dir",
    "directory",
    type=click.Path(path_type=Path),
    envvar="GATEWAY_RUNTIME_DIR",
    default=Path("/run/gateway"),
    show_default=True,
    metavar="DIRECTORY",
    help="The runtime directory of the gateway.",
)
"""Selects the gateway, if there are several."""


def status_of(directory: Path, timeout_s: float) -> dict[str, Any]:
    """Request the status from a gateway's broker: see `ask_broker`."""
    return ask_broker(directory, "status", timeout_s)


def ask_broker(directory: Path, op: str, timeout_s: float, **words: object) -> dict[str, Any]:
    """Send a request to a gateway's broker.

    Args:
        directory: GATEWAY_RUNTIME_DIR.
        op: The request.
        timeout_s: Longest wait, in seconds; the broker answers from memory.
        words: The request's other fields.

    Raises:
        BrokerUnavailableError: The broker does not answer, or no gateway runs.
        GatewayError: We are not root.
    """
    try:
        return ask(str(Runtime(directory).broker_socket), {"op": op, **words}, timeout_s)
    except BrokerUnavailableError as exc:
        # No supervisor runs: it listens on the socket even if the broker has crashed.
        if isinstance(exc.__cause__, (FileNotFoundError, NotADirectoryError, ConnectionRefusedError)):
            msg = f"no gateway runs in {directory}; start one with gatewayctl serve, or name its GATEWAY_RUNTIME_DIR"
            raise BrokerUnavailableError(msg) from exc
        raise
