"""What a session looks like from outside: its processes on the gateway, and the picture on its screen."""

from __future__ import annotations

import re
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gatewayctl.runtime.processes import copy_descriptor
from lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.processes import Process
    from lab.terminal import Terminal
    from lab.users import User


def sshd_of(gateway: Gateway, user: User) -> list[Process]:
    """List what sshd runs for a user, by the title that sshd gives it: the monitor, then what runs as the user."""
    title = re.compile(rf"sshd(-session)?: {re.escape(user.name)}( |@|$)")
    return sorted(
        (process for process in gateway.processes() if title.match(process.argv[0])), key=lambda its: -(its.uid == 0)
    )


def uid_of(gateway: Gateway, user: User) -> int:
    """Tell a logged-in user's uid on the gateway."""
    (uid,) = {process.uid for process in sshd_of(gateway, user)} - {0}
    return uid


def mosh_client_of(gateway: Gateway, user: User) -> Process:
    """Find the mosh-client of a user with one session."""
    (client,) = gateway.processes("mosh-client", uid=uid_of(gateway, user))
    return client


def environment_of(process: Process) -> dict[str, str]:
    """Read a process's environment; one that has ended since it was listed has none."""
    try:
        text = Path(f"/proc/{process.pid}/environ").read_text("utf-8", "surrogateescape")
    except (FileNotFoundError, ProcessLookupError):
        return {}
    # sshd writes its title over its environment.
    return dict(word.split("=", 1) for word in text.split("\0") if "=" in word)


def sends_at_once(sshd: Process) -> bool:
    """Tell whether an sshd has a socket to listen on for IPv4, and whether what comes of it has TCP_NODELAY."""
    found = []
    for entry in Path(f"/proc/{sshd.pid}/fd").iterdir():
        # That of a connection may be closed meanwhile.
        with suppress(OSError):
            if str(entry.readlink()).startswith("socket:"):
                with socket.socket(fileno=copy_descriptor(sshd.pid, int(entry.name))) as theirs:
                    if theirs.family == socket.AF_INET:
                        found.append(theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)
    return found == [True]


def wait_gone(lab: Lab, gateway: Gateway, user: User, uid: int, *, timeout_s: float = 20.0) -> None:
    """Wait until nothing of a user's session is left: on the remote, on the gateway, of sshd or of the uid."""
    wait_until(
        lambda: not lab.remote.processes("mosh-server", user=user),
        f"the mosh-server of {user.name} is gone",
        timeout_s=timeout_s,
    )
    wait_until(
        lambda: not gateway.processes(uid=uid) and not sshd_of(gateway, user),
        f"the gateway has no process of {user.name}",
        timeout_s=timeout_s,
    )


def picture(terminal: Terminal, *, rows: int = 24, columns: int = 80) -> list[list[tuple[object, ...]]]:
    """Return every character of a screen with all its attributes, and the cursor's place as the last row."""
    cells = [[tuple(terminal.character(row, column)) for column in range(columns)] for row in range(rows)]
    return [*cells, [terminal.cursor]]


def wait_same(through: Terminal, oracle: Terminal) -> None:
    """Wait until two screens show the same, colours, attributes and cursor included."""
    try:
        wait_until(lambda: picture(through) == picture(oracle), "both screens show the same")
    except AssertionError as error:
        message = f"{error}; through the gateway:\n{through.framed()}\nwithout it:\n{oracle.framed()}"
        raise AssertionError(message) from None


def lookup_uid(gateway: Gateway, user: User) -> int:
    """Look a user's uid up as sshd does, be the user logged in or not."""
    argv = ["nsenter", f"--target={gateway.listener.pid}", "-m", "--", "getent", "passwd", user.name]
    return int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split(":")[2])


def masters_of(gateway: Gateway, user: User) -> list[Process]:
    """List the connections that a user's sessions share, by the title that ssh gives itself."""
    return [its for its in gateway.processes("ssh", uid=lookup_uid(gateway, user)) if "[mux]" in its.argv[0]]


def work_of(lab: Lab, user: User) -> list[Process]:
    """List what runs as a user on the remote but for sshd's own."""
    return [its for its in lab.remote.processes(user=user) if its.name not in {"sshd", "sshd-session"}]


def wait_finished(lab: Lab, gateway: Gateway, user: User) -> None:
    """Wait until neither side has a process of a user's but for the connection that waits for the next session."""
    uid = lookup_uid(gateway, user)
    wait_until(lambda: not work_of(lab, user), f"nothing of {user.name} runs on the remote")
    wait_until(lambda: not sshd_of(gateway, user), f"the gateway's sshd has nothing of {user.name}")
    wait_until(
        lambda: all("[mux]" in its.argv[0] for its in gateway.processes(uid=uid)),
        f"{user.name} has nothing but a shared connection on the gateway",
    )


def may_enter(
    lab: Lab,
    gateway: Gateway,
    user: User | str,
    *,
    key: Path | None = None,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> bool:
    """Authenticate and ask for nothing that the gateway grants (``ssh -W``): whether sshd accepted a key."""
    argv = lab.gateway_argv(gateway, user, key=key, options=["-W", "127.0.0.1:9", *options])
    done = lab.run(argv, environment=environment)
    assert done.returncode == 255, done
    refused, entered = b"Permission denied (publickey)" in done.stderr, b"prohibited" in done.stderr
    assert refused is not entered, done
    return entered
