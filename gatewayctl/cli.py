"""``gatewayctl``: the operator's command. Each subcommand is a module, which is imported when it is used."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

import click

from gatewayctl.settings.sources import did_you_mean
from helpers.protocol.errors import GatewayError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


@dataclass(frozen=True)
class Subcommand:
    """A subcommand's location, and its line in the list of commands.

    Attributes:
        module: Its module in ``gatewayctl.commands``.
        function: Its function there.
        about: The first sentence of its help; here, so that the list imports no module.
    """

    module: str
    function: str
    about: str


SUBCOMMANDS = {
    "check-config": Subcommand("check", "check_config", "Check the settings and show the values in effect."),
    "doctor": Subcommand("doctor", "doctor", "Examine the way to a session on the remote host."),
    "drain": Subcommand("drain", "drain", "Accept no new sessions; open ones go on."),
    "hash-password": Subcommand("hash_password", "hash_password", "Hash a password for GATEWAY_PASSWORDS."),
    "healthcheck": Subcommand("healthcheck", "healthcheck", "Check whether a running gateway accepts logins."),
    "install": Subcommand("install", "install", "Make the gateway a service of this machine."),
    "kick": Subcommand("kick", "kick", "End the session SID, or all sessions of USER."),
    "render-config": Subcommand(
        "render_config", "render_config", "Show or write the configuration of the gateway's sshd."
    ),
    "serve": Subcommand("serve", "serve", "Run the gateway in the foreground."),
    "sessions": Subcommand("sessions", "sessions", "List the open sessions of a running gateway."),
    "status": Subcommand("status", "status", "Show the status of a running gateway."),
}


class LazyGroup(click.Group):
    """A group that imports a subcommand's module when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the subcommands in alphabetical order."""
        del ctx
        return sorted(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand, or fail with the nearest name; print nothing during shell completion."""
        if cmd_name not in SUBCOMMANDS:
            if ctx.resilient_parsing:
                return None
            near = did_you_mean(cmd_name, SUBCOMMANDS)
            ctx.fail(f"No such command {cmd_name!r}{near}")
        subcommand = SUBCOMMANDS[cmd_name]
        module = importlib.import_module(f"gatewayctl.commands.{subcommand.module}")
        command: click.Command = getattr(module, subcommand.function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUBCOMMANDS[name].about) for name in self.list_commands(ctx)])


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's
    del param
    if value:
        from helpers.protocol.version import installed_version  # noqa: PLC0415 - it takes longer than this module

        version = installed_version()
        click.echo("gatewayctl, not installed" if version is None else f"gatewayctl {version}")
        ctx.exit()


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Settings come from flags, environment variables and a YAML file: see gatewayctl serve --help.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
def gatewayctl() -> None:
    """Run an SSH gateway to one remote host, with mosh across the WAN."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit; each `GatewayError` becomes one line on stderr.

    Args:
        arguments: The arguments after the program's name; None means the process's own.

    Raises:
        SystemExit: Always: 0, the error's status (`helpers.protocol.errors`), 2 for wrong usage, 130 for Ctrl-C.
    """
    try:
        status = gatewayctl.main(arguments, prog_name="gatewayctl", standalone_mode=False)
    except GatewayError as error:
        click.echo(f"gatewayctl: {error.message}", err=True)
        sys.exit(error.status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except OSError as error:  # for example if standard output is a file on a full disk
        where = "" if error.filename is None else f": {error.filename}"
        click.echo(f"gatewayctl: {error.strerror or error}{where}", err=True)
        sys.exit(GatewayError.status)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)
