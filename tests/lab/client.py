"""Command lines of the stock clients, with nothing of the developer's own configuration in them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from lab.wan import FAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lab.users import User


def ssh_options(known_hosts: Path, key: Path | None) -> list[str]:
    """Return the options of every ``ssh`` of the lab.

    Args:
        known_hosts: The only file of host keys to believe.
        key: The only private key to offer; None leaves it to the agent in the environment.
    """
    options = [
        "StrictHostKeyChecking=yes",
        f"UserKnownHostsFile={known_hosts}",
        "GlobalKnownHostsFile=/dev/null",
        "PasswordAuthentication=no",
        "KbdInteractiveAuthentication=no",
        "ControlPath=none",
    ]
    options += ["IdentityFile=none"] if key is None else ["IdentitiesOnly=yes"]
    words = ["-F", "none", *(word for option in options for word in ("-o", option))]
    return words if key is None else [*words, "-i", str(key)]


def ssh_argv(
    user: User | str,
    *,
    host: str,
    port: int,
    known_hosts: Path,
    key: Path | None = None,
    options: Sequence[str] = (),
    command: Sequence[str] = (),
) -> list[str]:
    """Return the command line of OpenSSH's client.

    Args:
        user: Who logs in: a user, whose key is then offered, or a name, for whom the agent's keys are.
        host: Name or address.
        port: TCP port.
        known_hosts: The only file of host keys to believe.
        key: The private key to offer instead of the user's.
        options: More options, such as ``-tt`` or ``-A``.
        command: The remote command; none asks for a shell.
    """
    name, own_key = (user, None) if isinstance(user, str) else (user.name, user.key.private)
    return [
        "ssh",
        *ssh_options(known_hosts, key or own_key),
        *options,
        f"-p{port}",
        f"-l{name}",
        "--",
        host,
        *command,
    ]


def mosh_argv(user: User, *, known_hosts: Path, host: str = FAR_IPV4, command: Sequence[str] = ()) -> list[str]:
    """Return the command line of mosh's own wrapper, straight to the remote: the oracle."""
    ssh = shlex.join(["ssh", *ssh_options(known_hosts, user.key.private), f"-l{user.name}"])
    return ["mosh", f"--ssh={ssh}", host, *(["--", *command] if command else [])]
