"""Makes command-line flags of all settings that are not secrets."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gatewayctl.settings.metadata import describe
from gatewayctl.settings.model import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from gatewayctl.settings.metadata import SettingInfo


def settings_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add ``--config`` and a flag for every setting that is not a secret to a command.

    The command is called with ``load``, a function without arguments that returns the `Settings` or raises
    `SettingsError`. It reads the file and the environment each time: calling it again is a reload.
    """

    @functools.wraps(function)
    def command(config: Path | None, **arguments: object) -> None:
        flags = {info.name: arguments.pop(info.name) for info in _flags()}
        function(load=lambda: load_settings(config, flags, os.environ), **arguments)

    decorated: Callable[..., None] = command
    for info in reversed(_flags()):
        decorated = _option(info)(decorated)
    # `load_settings` reports a file that is missing or cannot be read.
    path = click.Path(path_type=Path, readable=False)
    return click.option("--config", type=path, metavar="FILE", help="A YAML file with settings.")(decorated)


def secrets_note() -> str:
    """Return the note on settings without a flag, for the end of a command's help."""
    names = " and ".join(info.variable for info in describe(Settings) if info.secret)
    return (
        "Every flag is also an environment variable and a key of the file:"
        " --remote-port, REMOTE_PORT, remote_port. REMOTE_PORT_FILE would name a file that holds the value."
        f" {names} hold secrets and have no flag, because everyone on the machine can read a command line."
    )


def _flags() -> list[SettingInfo]:
    return [info for info in describe(Settings) if not info.secret]


def _option(info: SettingInfo) -> Callable[[Callable[..., None]], Callable[..., None]]:
    declaration = f"{info.flag}/--no-{info.flag[2:]}" if info.boolean else info.flag
    return click.option(
        declaration,
        info.name,
        default=None,  # not given; the real default is the setting's own, after environment and file
        type=bool if info.boolean else str,
        metavar=None if info.boolean else info.doc.unit,
        help=_help(info),
    )


def _help(info: SettingInfo) -> str:
    default = "required" if info.required else f"default: {info.default}" if info.default else "default: not set"
    expects = "" if info.boolean else f": {info.doc.expects}"
    return f"{info.doc.about}{expects}. [{default}]"
