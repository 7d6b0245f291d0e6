"""``gatewayctl render-config``: shows or writes the configuration of the gateway's sshd."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gatewayctl.commands.settings_flags import secrets_note, settings_options
from gatewayctl.runtime.directory import ensure_host_key
from gatewayctl.sshd import config

if TYPE_CHECKING:
    from collections.abc import Callable

    from gatewayctl.settings.model import Settings

SSHD = Path("/usr/sbin/sshd")


@click.command(epilog=secrets_note())
@settings_options
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the files there, checked with sshd -t.",
)
@click.option(
    "--sshd",
    type=click.Path(path_type=Path),
    default=SSHD,
    metavar="PATH",
    show_default=True,
    help="The sshd that will read them; its version decides what is in them.",
)
def render_config(load: Callable[[], Settings], output: Path | None, sshd: Path) -> None:
    """Show or write the configuration of the gateway's sshd.

    Without --output, the files go to standard output, each behind a line with its name.
    """
    context = config.sshd_context(load(), config.sshd_version(sshd))
    files = config.render(context)
    if output is None:
        for name, text in files.items():
            click.echo(f"# ===== sshd_config.d/{name} =====\n{text}")
        return
    with tempfile.TemporaryDirectory(prefix="gatewayctl-") as scratch:
        check_in_scratch(sshd, context, Path(scratch))
    click.echo(config.write(output.absolute(), files))


def check_in_scratch(sshd: Path, context: config.SshdContext, scratch: Path) -> None:
    """Have sshd check the configuration in a scratch directory, so that an invalid one is never written.

    The host key may not exist yet, since ``serve`` makes it. A temporary key then takes its place.

    Raises:
        GatewayError: sshd's error.
    """
    if not context.host_key.exists():
        context = replace(context, host_key=scratch / "host_key")
        ensure_host_key(context.host_key)
    config.check(sshd, config.write(scratch, config.render(context)))
