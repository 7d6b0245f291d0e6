"""``gatewayctl install``: make the gateway a service of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click

import helpers
from gatewayctl.runtime.directory import check_root_only
from helpers.protocol.errors import SettingsError

SERVICE = "ssh-mosh-gateway"
"""The name of the service; with ``--name eu`` it is ``ssh-mosh-gateway-eu``."""

UNITS = Path("/etc/systemd/system")
"""The directory of the administrator's own units (systemd.unit(5))."""

LINK = Path("/usr/local/bin/gatewayctl")
"""On the PATH of logins, and of sudo's ``secure_path``."""

SERVICE_CONFIG = Path("/etc/gateway/config.yaml")
"""The settings of the service."""

SYSTEMD_RUNS = Path("/run/systemd/system")
"""Exists if systemd is the service manager (sd_booted(3))."""

_WRITTEN_BY = "# Written by `gatewayctl install --systemd`"

_CONFIG = re.compile(r'^ExecStart=.* serve --config ("(?:[^"\\\\]|\\\\.)*")', re.MULTILINE)

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)


@click.command()
@click.option("--systemd", is_flag=True, required=True, help="As a systemd unit; there is no other way yet.")
@click.option(
    "--name",
    metavar="NAME",
    help="Install a further gateway, ssh-mosh-gateway-NAME: 1 to 32 of a-z, 0-9 and hyphen.  [default: the only one]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The YAML file with the service's settings.  [default: /etc/gateway/config.yaml, or /etc/gateway-NAME/…]",
)
@click.option("--print", "only_print", is_flag=True, help="Print the unit and change nothing.")
@click.option("--remove", is_flag=True, help="Stop the service and remove its unit; settings and keys stay.")
def install(name: str | None, config: Path | None, *, systemd: bool, only_print: bool, remove: bool) -> None:
    """Make the gateway a service of this machine.

    Writes one unit, which runs this installation, and a link /usr/local/bin/gatewayctl, and starts nothing. Your sshd
    is not changed. Run it again after an upgrade; a unit that is up to date is not changed.

    A further gateway on the same machine has a NAME, by which status, sessions, kick, drain and healthcheck find it,
    too. Its runtime directory is /run/gateway-NAME; its settings must name another port.

    A unit that another program wrote, or that runs with another --config, is not overwritten.
    """
    del systemd
    service = Service(name)
    config = config or service.directory / SERVICE_CONFIG.name
    if only_print:
        click.echo(unit(service, config), nl=False)
        return
    if os.geteuid() != 0:
        msg = "install must be run by root; --print shows what it would write"
        raise SettingsError(msg)
    if not SYSTEMD_RUNS.is_dir():
        msg = "systemd is not this machine's service manager; --print shows the unit"
        raise SettingsError(msg)
    if remove:
        _remove(service)
        return
    changed = _write(service, unit(service, config))
    _link()
    if not config.exists():
        port = "" if name is None else " and gateway_port: 2223"
        click.echo(f"Write {config} next, with at least: remote_host: shell.example.org{port}")
    if _is_active(service):
        what = f"restart {service.unit} (open sessions end)" if changed else f"reload {service.unit}"
        click.echo(f"Then, for what is new here: systemctl {what}")
    else:
        click.echo(f"Then: systemctl enable --now {service.unit}")


@dataclass(frozen=True)
class Service:
    """A gateway that is a service.

    Attributes:
        instance: Its name among several; None for the only one.

    Raises:
        SettingsError: The name is not valid.
    """

    instance: str | None

    def __post_init__(self) -> None:
        """Check the name."""
        if self.instance is not None and not _NAME.fullmatch(self.instance):
            msg = f"--name {self.instance!r} is not 1 to 32 of a-z, 0-9 and hyphen"
            raise SettingsError(msg)

    @property
    def name(self) -> str:
        """The service's name."""
        return SERVICE if self.instance is None else f"{SERVICE}-{self.instance}"

    @property
    def unit(self) -> str:
        """The unit's name."""
        return f"{self.name}.service"

    @property
    def path(self) -> Path:
        """The unit's file."""
        return UNITS / self.unit

    @property
    def directory(self) -> Path:
        """The directory of its settings and keys."""
        own = SERVICE_CONFIG.parent
        return own if self.instance is None else own.with_name(f"{own.name}-{self.instance}")

    @property
    def runtime_directory(self) -> Path:
        """Its runtime directory, unless a setting of the only gateway's names another."""
        return Path("/run/gateway" if self.instance is None else f"/run/gateway-{self.instance}")

    @property
    def flags(self) -> str:
        """The flags by which it differs from the only gateway: what two cannot share."""
        if self.instance is None:
            return ""
        return f" --gateway-runtime-dir {self.runtime_directory} --gateway-host-key-path {self.directory}/host_key"


def unit(service: Service, config: Path) -> str:
    """Render the unit.

    Args:
        service: The service.
        config: The settings' file; it may not exist yet.

    Raises:
        SettingsError: sshd and the gateway's users cannot run the programs of this installation.
    """
    check_root_only(Path(helpers.__file__), "the installation of gatewayctl in")
    check_root_only(Path(sys.executable), "the Python")
    if not config.is_absolute():
        msg = f"--config {config} must be an absolute path: systemd runs the gateway elsewhere"
        raise SettingsError(msg)
    text = (Path(__file__).parents[1] / "systemd" / f"{SERVICE}.service").read_text(encoding="utf-8")
    for word, value in (
        ("python", _word(sys.executable)),
        ("config", _word(str(config))),
        ("flags", service.flags),
        ("name", service.name),
        ("directory", service.directory.name),
    ):
        text = text.replace(f"{{{{ {word} }}}}", value)
    return text


def _word(text: str) -> str:
    """Quote a word of a command line for systemd.service(5)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def _write(service: Service, text: str) -> bool:
    """Write the unit; returns whether it has changed.

    Raises:
        SettingsError: Another program wrote the unit that is there, or it runs a gateway with other settings.
    """
    there = service.path.read_text(encoding="utf-8", errors="replace") if os.path.lexists(service.path) else None
    if there == text:
        click.echo(f"{service.path} is up to date.")
        return False
    if there is not None:
        check_replaceable(service, there, text)
    service.path.write_text(text, encoding="utf-8")
    _systemctl("daemon-reload")
    click.echo(f"Wrote {service.path}.")
    return True


def check_replaceable(service: Service, there: str, text: str) -> None:
    """Check that a unit may be replaced by another.

    Args:
        service: The service.
        there: The unit's present text.
        text: The new text.

    Raises:
        SettingsError: Another program wrote the present one, or it runs a gateway with other settings.
    """
    if not there.startswith(_WRITTEN_BY):
        msg = f"{service.path} was not written by gatewayctl install, and stays; move it away, or give another --name"
        raise SettingsError(msg)
    old, new = (_CONFIG.findall(unit) for unit in (there, text))
    if old and old != new:
        msg = f"{service.path} runs the gateway of --config {old[0]}: give that, another --name, or --remove it first"
        raise SettingsError(msg)


def _link() -> None:
    """Put gatewayctl on the PATH, unless another file is there."""
    program = _program()
    if LINK.is_symlink() and LINK.readlink() == program:
        return
    if os.path.lexists(LINK):
        click.echo(f"{LINK} is another file, and stays; this installation's is {program}.")
        return
    LINK.symlink_to(program)
    click.echo(f"Linked {LINK} to {program}.")


def _program() -> Path:
    """Return the path of gatewayctl in this installation."""
    return Path(sys.executable).with_name("gatewayctl")


def _remove(service: Service) -> None:
    if not service.path.exists():
        click.echo(f"{service.path} is not there.")
        return
    _systemctl("disable", "--now", service.unit)
    service.path.unlink()
    _systemctl("daemon-reload")
    click.echo(f"Removed {service.path}.")
    others = [path for path in UNITS.glob(f"{SERVICE}*.service") if path != service.path]
    if not others and LINK.is_symlink() and LINK.readlink() == _program():
        LINK.unlink()
        click.echo(f"Removed {LINK}.")


def _is_active(service: Service) -> bool:
    """Check whether the service runs; ``enable --now`` does not restart it then."""
    return subprocess.run(["systemctl", "--quiet", "is-active", service.unit], check=False).returncode == 0


def _systemctl(*arguments: str) -> None:
    done = subprocess.run(["systemctl", "--quiet", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().replace("\n", "; ")
        msg = f"systemctl {' '.join(arguments)} failed: {reason}"
        raise SettingsError(msg)
