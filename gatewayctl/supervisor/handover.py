"""Hands the running gateway over to a new version of the supervisor, in the same process (execve(2)).

The process id, the children and the file descriptors stay, and so do sessions. What the new version must know beyond
them is in a memory file (memfd_create(2)) with a version. Before that, the new version is tried out in a child, which
reads the memory file and the settings and changes nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import gatewayctl
import helpers
from helpers.protocol.errors import GatewayError

VERSION = 1
"""The version of the state; another one is not understood."""

VARIABLE = "SSH_MOSH_GATEWAY_HANDOVER"
"""Contains the memory file's descriptor, followed by ``:check`` for the trial."""

TRIAL_TIMEOUT_S = 30.0
"""Longest time, in seconds, for the trial; it takes half a second."""

_SUFFIXES = frozenset({".py", ".conf", ".service"})


@dataclass(frozen=True)
class State:
    """The state of a running gateway.

    Attributes:
        fixed: The settings that change only by a restart.
        private: Whether sshd runs in a mount namespace of its own.
        sockets: The descriptors of the broker's three listening sockets.
        log_socket: The descriptor of the socket for sshd's syslog messages; None if there is none.
        lock: The descriptor that holds the runtime directory's lock.
        sshd: The pid of the listening sshd.
        listen: GATEWAY_HOST and GATEWAY_PORT on which it listens.
        broker: The active broker's pid; 0 if there is none.
        privileged_socket: The descriptor on which it requests privileged operations; None if there is no broker.
        trusted_proxies: Its GATEWAY_TRUSTED_PROXIES.
        draining: The pids of brokers that finish their requests.
        owners: The last name of each uid that has a home.
        connections: See `gatewayctl.sshd.connections.Connections.to_json`.
    """

    fixed: list[str]
    private: bool
    sockets: list[int]
    log_socket: int | None
    lock: int
    sshd: int
    listen: tuple[str, int]
    broker: int
    privileged_socket: int | None
    trusted_proxies: str
    draining: list[int]
    owners: dict[str, str]
    connections: dict[str, Any]

    @property
    def descriptors(self) -> list[int]:
        """All descriptors."""
        some = (self.log_socket, self.privileged_socket)
        return [*self.sockets, self.lock, *(each for each in some if each is not None)]


def fingerprint() -> str:
    """Return a hash of the installed files' names, sizes and times; another one means that there was an upgrade."""
    found = hashlib.sha256()
    for package in (gatewayctl, helpers):
        directory = Path(package.__file__ or "").parent
        for path in sorted(path for path in directory.rglob("*") if path.suffix in _SUFFIXES):
            info = path.stat()
            found.update(f"{path} {info.st_size} {info.st_mtime_ns} {info.st_ino}\n".encode())
    return found.hexdigest()


@contextmanager
def written(state: State) -> Iterator[int]:
    """Write the state into a memory file, and yield its descriptor."""
    memory = os.memfd_create("gateway-handover", os.MFD_CLOEXEC)
    try:
        os.write(memory, json.dumps({"version": VERSION, **asdict(state)}).encode())
        yield memory
    finally:
        os.close(memory)


def inherited(environ: Mapping[str, str]) -> tuple[State, bool] | None:
    """Read the state that an earlier version left.

    Returns:
        The state, and whether this is only the trial; None if this process starts a gateway.

    Raises:
        GatewayError: The state is another version's.
    """
    descriptor, _, check = environ.get(VARIABLE, "").partition(":")
    if not descriptor.isdecimal():
        return None
    with open(int(descriptor), "rb", closefd=not check) as memory:
        memory.seek(0)
        known = json.load(memory)
    version = known.pop("version", None)
    if version != VERSION or set(known) != {field.name for field in fields(State)}:
        msg = f"the new version does not understand the running one's state (version {version}, not {VERSION})"
        raise GatewayError(f"{msg}; restart the gateway")
    return State(**{**known, "listen": tuple(known["listen"])}), bool(check)


def check_new_version() -> None:
    """Import what the new version's other programs are made of, for the trial.

    Raises:
        GatewayError: A module, or one that it needs, is missing or broken.
    """
    for module in ("helpers.broker.__main__", "helpers.session.main", "helpers.authorized_keys"):
        try:
            importlib.import_module(module)
        except Exception as exc:  # any error of a module
            raise GatewayError(f"{module} cannot be imported ({type(exc).__name__}: {exc})") from exc


def try_out(memory: int) -> None:
    """Have the new version read the state and the settings, in a child.

    Args:
        memory: The memory file.

    Raises:
        GatewayError: The new version does not start, or refuses; the sentence is its own.
    """
    environ = {**os.environ, VARIABLE: f"{memory}:check"}
    try:
        done = subprocess.run(
            _argv(),
            env=environ,
            pass_fds=[memory],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=TRIAL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        msg = f"the new version cannot be started ({getattr(exc, 'strerror', None) or 'it does not answer'})"
        raise GatewayError(msg) from exc
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        reason = said[-1].removeprefix("gatewayctl: ") if said else f"exit status {done.returncode}"
        raise GatewayError(f"the new version does not start: {reason}")


def become_new_version(memory: int, state: State) -> None:
    """Replace this process's program; returns only on failure.

    Raises:
        GatewayError: The program cannot be replaced.
    """
    kept = [memory, *state.descriptors]
    for descriptor in kept:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - os's own signature
    try:
        os.execve(sys.executable, _argv(), {**os.environ, VARIABLE: str(memory)})  # noqa: S606 - the same command
    except OSError as exc:
        for descriptor in kept:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - the same
        msg = f"the new version cannot be started ({exc.strerror})"
        raise GatewayError(msg) from exc


def _argv() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]
