"""Requests to a gateway that runs on this machine."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from gatewayctl.commands.install import Service
from gatewayctl.runtime.directory import Runtime
from helpers.protocol.broker_client import ask
from helpers.protocol.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

_directory_option = click.option(
    "--gateway-runtime-dir",
    "directory",
    type=click.Path(path_type=Path),
    envvar="GATEWAY_RUNTIME_DIR",
    default=Path("/run/gateway"),
    show_default=True,
    metavar="DIRECTORY",
    help="The runtime directory of the gateway.",
)

_name_option = click.option(
    "--name",
    "instance",
    metavar="NAME",
    help="The gateway of install --name NAME, instead of its runtime directory.  [default: the only one]",
)


def runtime_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that select a gateway, if there are several; the command gets its ``directory``."""

    @_directory_option
    @_name_option
    @wraps(command)
    def with_directory(*, directory: Path, instance: str | None, **values: object) -> None:
        if instance is not None:
            source = click.get_current_context().get_parameter_source("directory")
            if source is ParameterSource.COMMANDLINE:
                msg = "--name and --gateway-runtime-dir exclude each other: give one"
                raise click.UsageError(msg)
            directory = Service(instance).runtime_directory
        command(directory=directory, **values)

    return with_directory


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
            remedy = "start one with gatewayctl serve, or name its GATEWAY_RUNTIME_DIR or --name"
            raise BrokerUnavailableError(f"no gateway runs in {directory}; {remedy}") from exc
        raise
