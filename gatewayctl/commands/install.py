"""``gatewayctl install``: make the gateway a service of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

import helpers
from gatewayctl.runtime.directory import check_root_only
from helpers.protocol.errors import SettingsError

UNIT = "ssh-mosh-gateway.service"

UNIT_PATH = Path("/etc/systemd/system") / UNIT
"""The directory of the administrator's own units (systemd.unit(5))."""

SYSTEMD_RUNS = Path("/run/systemd/system")
"""Exists if systemd is the service manager (sd_booted(3))."""


@click.command()
@click.option("--systemd", is_flag=True, required=True, help="As a systemd unit; there is no other way yet.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("/etc/gateway/config.yaml"),
    show_default=True,
    metavar="FILE",
    help="The YAML file with the service's settings.",
)
@click.option("--print", "only_print", is_flag=True, help="Print the unit and change nothing.")
@click.option("--remove", is_flag=True, help="Stop the service and remove its unit; settings and keys stay.")
def install(config: Path, *, systemd: bool, only_print: bool, remove: bool) -> None:
    """Make the gateway a service of this machine.

    Writes one unit, which runs this installation, and starts nothing. Your sshd is not changed. Run it again after an
    upgrade; a unit that is up to date is not changed.
    """
    del systemd
    if only_print:
        click.echo(unit(config), nl=False)
        return
    if os.geteuid() != 0:
        msg = "install must be run by root; --print shows what it would write"
        raise SettingsError(msg)
    if not SYSTEMD_RUNS.is_dir():
        msg = "systemd is not this machine's service manager; --print shows the unit"
        raise SettingsError(msg)
    if remove:
        _remove()
        return
    _write(unit(config))
    if not config.exists():
        click.echo(f"Write {config} next, with at least: remote_host: shell.example.org")
    if _is_active():
        click.echo(f"Then, for what is new here: systemctl restart {UNIT} (open sessions end)")
    else:
        click.echo(f"Then: systemctl enable --now {UNIT}")


def unit(config: Path) -> str:
    """Render the unit.

    Args:
        config: The settings' file; it may not exist yet.

    Raises:
        SettingsError: sshd and the gateway's users cannot run the programs of this installation.
    """
    check_root_only(Path(helpers.__file__), "the installation of gatewayctl in")
    check_root_only(Path(sys.executable), "the Python")
    if not config.is_absolute():
        msg = f"--config {config} must be an absolute path: systemd runs the gateway elsewhere"
        raise SettingsError(msg)
    template = (Path(__file__).parents[1] / "systemd" / UNIT).read_text(encoding="utf-8")
    return template.replace("{{ python }}", _word(sys.executable)).replace("{{ config }}", _word(str(config)))


def _word(text: str) -> str:
    """Quote a word of a command line for systemd.service(5)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def _write(text: str) -> None:
    if UNIT_PATH.exists() and UNIT_PATH.read_text(encoding="utf-8") == text:
        click.echo(f"{UNIT_PATH} is up to date.")
        return
    UNIT_PATH.write_text(text, encoding="utf-8")
    _systemctl("daemon-reload")
    click.echo(f"Wrote {UNIT_PATH}.")


def _remove() -> None:
    if not UNIT_PATH.exists():
        click.echo(f"{UNIT_PATH} is not there.")
        return
    _systemctl("disable", "--now", UNIT)
    UNIT_PATH.unlink()
    _systemctl("daemon-reload")
    click.echo(f"Removed {UNIT_PATH}.")


def _is_active() -> bool:
    """Check whether the service runs; ``enable --now`` does not restart it then."""
    return subprocess.run(["systemctl", "--quiet", "is-active", UNIT], check=False).returncode == 0


def _systemctl(*arguments: str) -> None:
    done = subprocess.run(["systemctl", "--quiet", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().replace("\n", "; ")
        msg = f"systemctl {' '.join(arguments)} failed: {reason}"
        raise SettingsError(msg)
