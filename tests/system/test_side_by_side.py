"""Two gateways and the machine's own sshd share one machine, and none of them notices the others."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from system.sessions import sshd_of, uid_of, wait_gone

from lab.client import ssh_argv
from lab.gateway import ADDRESS, GATEWAYCTL
from lab.room import PLAIN_ENVIRONMENT
from lab.users import make_key
from lab.waiting import LogFile, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.bench import Lab
    from lab.gateway import Gateway
    from lab.processes import Process
    from lab.terminal import Terminal
    from lab.users import User

    OpenTerminal = Callable[..., Terminal]

_TCP_LISTEN = "0A"  # Linux, net/tcp_states.h
_NEIGHBOUR_PORT = 2022
_MACHINE_PORT = 22

# Debian's own, but for UsePAM, which would write to the logs of the machine that runs the tests.
_MACHINE_SSHD = """\
Port {port}
ListenAddress {address}
HostKey {directory}/machine_host_key
PidFile none
UsePAM no
PermitRootLogin prohibit-password
AuthorizedKeysFile {directory}/machine_authorized_keys
LogLevel VERBOSE
"""


@contextmanager
def _daemon(gateway: Gateway, argv: list[str], log: Path, environment: dict[str, str]) -> Iterator[LogFile]:
    """Run a daemon on the gateway's machine for a while: same accounts, mounts, processes and network."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            gateway.room.argv(argv),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**PLAIN_ENVIRONMENT, **environment},
            start_new_session=True,
        )
    try:
        yield LogFile(log)
    finally:
        for child in gateway.processes():
            if child.parent_pid == process.pid:
                os.kill(child.pid, 15)
        process.wait(20)


@contextmanager
def _neighbour(gateway: Gateway, directory: Path) -> Iterator[LogFile]:
    """Run a second gateway on the machine of the first: another port, another runtime directory, all else the same."""
    directory.mkdir()
    settings = {
        **gateway.settings,
        "GATEWAY_PORT": str(_NEIGHBOUR_PORT),
        "GATEWAY_RUNTIME_DIR": str(directory / "run"),
    }
    with _daemon(gateway, [str(GATEWAYCTL), "serve"], directory / "log", settings) as log:
        log.wait_for("gatewayctl.* info ready ")
        host, _, key = gateway.known_hosts.read_text().partition(" ")
        assert str(gateway.port) in host
        (directory / "known_hosts").write_text(f"[{ADDRESS}]:{_NEIGHBOUR_PORT} {key}")
        yield log


def _neighbour_argv(directory: Path, user: User) -> list[str]:
    """Return the command line of ``ssh`` through the second gateway."""
    return ssh_argv(user, host=ADDRESS, port=_NEIGHBOUR_PORT, known_hosts=directory / "known_hosts")


@contextmanager
def _machine_sshd(gateway: Gateway, directory: Path) -> Iterator[LogFile]:
    """Run the machine's own sshd, stock, on port 22; root's key is in ``machine_key``."""
    directory.mkdir()
    make_key(directory / "machine_host_key")
    key = make_key(directory / "machine_key")
    (directory / "machine_authorized_keys").write_text(key.public + "\n")
    host_key = (directory / "machine_host_key.pub").read_text()
    (directory / "machine_known_hosts").write_text(f"{ADDRESS} {host_key}")
    config = directory / "machine_sshd_config"
    config.write_text(_MACHINE_SSHD.format(port=_MACHINE_PORT, address=ADDRESS, directory=directory))
    argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)]
    with _daemon(gateway, argv, directory / "machine.log", {}) as log:
        log.wait_for("Server listening")
        yield log


def _machine_argv(directory: Path, name: str, *command: str) -> list[str]:
    """Return the command line of ``ssh`` to the machine itself."""
    known_hosts, key = directory / "machine_known_hosts", directory / "machine_key"
    return ssh_argv(name, host=ADDRESS, port=_MACHINE_PORT, known_hosts=known_hosts, key=key, command=command)


def _sockets(process: Process) -> set[str]:
    """List the inodes of the sockets that a process holds; one that has ended since it was listed holds none."""
    found = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                target = str(descriptor.readlink())
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def _bound(gateway: Gateway, table: str) -> set[str]:
    """Name the gateway's processes that hold sockets which strangers can reach, from ``/proc/net/TABLE``."""
    rows = [line.split() for line in Path(f"/proc/{gateway.room.pid}/net/{table}").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[3] == _TCP_LISTEN or table.startswith("udp")}
    return {process.name for process in gateway.processes() if inodes & _sockets(process)}


def test_two_gateways_on_one_machine(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: OpenTerminal
) -> None:
    """Both let the same user in, as two uids; the end of one is nothing to the sessions of the other."""
    gateway = start_gateway()
    first = open_terminal(lab.gateway_argv(gateway, user))
    first.wait_for(user.prompt)
    uid = uid_of(gateway, user)
    directory = lab.directory / f"neighbour-{user.name}"

    with _neighbour(gateway, directory) as log:
        second = open_terminal(_neighbour_argv(directory, user))
        second.wait_for(user.prompt)
        uids = {its.uid for its in sshd_of(gateway, user)} - {0}
        assert len(uids) == 2
        assert uid in uids
        first.run("echo $((6 * 7))", "\n42\n")
    assert log.matches("gatewayctl.* info ended")

    assert second.wait_exit() == 255
    first.run("clear; echo $((6 * 8))", "48\n")
    again = open_terminal(lab.gateway_argv(gateway, user))
    again.wait_for(user.prompt)
    assert uid_of(gateway, user) == uid
    for terminal in (first, again):
        terminal.type("exit\r")
        assert terminal.wait_exit() == 0
    wait_gone(lab, gateway, user, uid)


def test_first_gateway_ends_before_the_second(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: OpenTerminal
) -> None:
    """The gateway that was there first can leave first: the other one keeps its users and takes new ones."""
    gateway = start_gateway()
    directory = lab.directory / f"neighbour-{user.name}"
    with _neighbour(gateway, directory):
        terminal = open_terminal(_neighbour_argv(directory, user))
        terminal.wait_for(user.prompt)

        assert gateway.stop() == 0

        terminal.run("echo $((6 * 7))", "\n42\n")
        open_terminal(_neighbour_argv(directory, user)).wait_for(user.prompt)


def test_machine_keeps_its_own_sshd(
    lab: Lab, start_gateway: Callable[..., Gateway], user: User, open_terminal: OpenTerminal
) -> None:
    """The machine's own sshd on port 22 works beside the gateway, and knows none of the gateway's users."""
    gateway = start_gateway()
    directory = lab.directory / f"machine-{user.name}"
    with _machine_sshd(gateway, directory) as log:
        terminal = open_terminal(lab.gateway_argv(gateway, user))
        terminal.wait_for(user.prompt)

        admitted = lab.run(_machine_argv(directory, "root", "hostname; getent passwd root nobody www-data | wc -l"))
        stranger = lab.run(_machine_argv(directory, user.name, "true"))

        assert (admitted.stdout, admitted.returncode) == (b"gateway\n3\n", 0)
        assert stranger.returncode == 255
        log.wait_for(f"Invalid user {user.name} ")
        for key in (user.name, str(uid_of(gateway, user))):
            with pytest.raises(subprocess.CalledProcessError) as error:
                gateway.room.run(["getent", "passwd", key])
            assert error.value.returncode == 2
        terminal.run("echo $((6 * 7))", "\n42\n")


def test_nothing_listens_but_sshd(lab: Lab, gateway: Gateway, user: User, open_terminal: OpenTerminal) -> None:
    """In the midst of a session TCP is open at sshd alone, and UDP at mosh-client alone."""
    open_terminal(lab.gateway_argv(gateway, user)).wait_for(user.prompt)

    assert _bound(gateway, "tcp") | _bound(gateway, "tcp6") == {"sshd"}
    assert _bound(gateway, "udp") | _bound(gateway, "udp6") == {"mosh-client"}


def test_gateway_listens_where_it_was_told(gateway: Gateway) -> None:
    """GATEWAY_HOST and GATEWAY_PORT are the only place where the gateway can be reached."""
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{gateway.room.pid}/net/{table}").read_text().splitlines()[1:]
    ]
    inodes = {inode for process in gateway.processes("sshd") for inode in _sockets(process)}
    places = {row[1] for row in rows if row[3] == _TCP_LISTEN and row[9] in inodes}

    wait_until(lambda: gateway.processes("sshd"), "sshd is there")
    assert places == {f"0100007F:{gateway.port:04X}"}
