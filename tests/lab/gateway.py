"""``gatewayctl serve`` in a room of its own, set up by environment variables alone, as a container would be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lab.processes import Process, child_of
from lab.room import PLAIN_ENVIRONMENT, Room
from lab.waiting import LogFile, wait_until
from lab.wan import FAR_IPV4, FAR_IPV6

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import IO

# Beside the interpreter that runs the tests: the wheel that was installed, not the checkout.
GATEWAYCTL = Path(sys.executable).with_name("gatewayctl")

ADDRESS = "127.0.0.1"
REMOTE_NAME = "remote.example"


class Gateway:
    """A gateway.

    Args:
        near: The room whose network has the WAN; the gateway listens on its loopback.
        directory: For the gateway's files; exists, root-owned, below /run.
        port: TCP port to listen on.
        settings: Environment variables on top of the defaults here; None takes one away.
        errors: A file for complaints of the set-up.
        arguments: Command-line arguments after ``serve``.
    """

    def __init__(
        self,
        near: Room,
        directory: Path,
        *,
        port: int,
        settings: Mapping[str, str | None],
        errors: IO[bytes],
        arguments: tuple[str, ...] = (),
    ) -> None:
        """Start it, without waiting: see ``wait_ready``."""
        self._near = near
        self.directory = directory
        self.port = port
        self.known_hosts = directory / "known_hosts"
        self.log = LogFile(directory / "log")
        defaults: dict[str, str | None] = {
            "REMOTE_HOST": FAR_IPV4,
            "GATEWAY_HOST": ADDRESS,
            "GATEWAY_PORT": str(port),
            "GATEWAY_RUNTIME_DIR": str(directory / "run"),
            "GATEWAY_HOST_KEY_PATH": str(directory / "host_key"),
        }
        self.settings = {name: value for name, value in {**defaults, **settings}.items() if value is not None}
        hosts = directory / "hosts"
        names = [f"{FAR_IPV4} {REMOTE_NAME}", f"{FAR_IPV6} {REMOTE_NAME}", "127.0.0.1 localhost", "::1 localhost"]
        hosts.write_text("".join(f"{line}\n" for line in names))
        self.room = Room(
            "gateway",
            errors=errors,
            setup=[
                ["mount", "--no-mtab", "--bind", str(hosts), "/etc/hosts"],
                # sshd keeps books on logins in there, and the host's are not for ours.
                ["mount", "--no-mtab", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/var/log"],
                ["touch", "/var/log/wtmp", "/var/log/lastlog"],
                # Where sshd puts agents' sockets: those of other workers' gateways are not ours.
                ["mount", "--no-mtab", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp"],  # noqa: S108 - the room's
            ],
            network_of=near,
        )
        with self.log.path.open("wb") as log:
            self._process = subprocess.Popen(
                self.room.argv([str(GATEWAYCTL), "serve", *arguments]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**PLAIN_ENVIRONMENT, **self.settings},
                start_new_session=True,
            )

    @property
    def host_key(self) -> Path:
        """The file of the gateway's own host key."""
        return Path(self.settings["GATEWAY_HOST_KEY_PATH"])

    @property
    def pid(self) -> int:
        """The process id of ``gatewayctl serve`` as the host sees it."""
        pid = child_of(self._process.pid)
        if pid is None:
            message = f"the gateway has ended; its log:\n{self.log_text()}"
            raise AssertionError(message)
        return pid

    def wait_ready(self, *, timeout_s: float = 20.0) -> None:
        """Wait until the port answers with an SSH banner; AssertionError with the log when it ends instead."""
        wait_until(
            lambda: self._process.poll() is not None or self._has_banner(), "the gateway listens", timeout_s=timeout_s
        )
        if self._process.poll() is not None:
            message = f"the gateway did not start (status {self._process.returncode}); its log:\n{self.log_text()}"
            raise AssertionError(message)
        public = subprocess.run(
            ["ssh-keygen", "-y", "-f", str(self.host_key)], check=True, capture_output=True, text=True
        ).stdout
        key = " ".join(public.split()[:2])
        self.known_hosts.write_text(f"[{ADDRESS}]:{self.port} {key}\n")

    def _has_banner(self) -> bool:
        """Tell whether an SSH server answers."""
        try:
            with self._near.connect(ADDRESS, self.port, timeout_s=1.0) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def log_text(self, *, since: int = 0) -> str:
        """Return the log as one string, from a line on."""
        return "\n".join(self.log.lines(since=since))

    def processes(self, name: str | None = None, *, uid: int | None = None) -> list[Process]:
        """List the gateway's processes: supervisor, broker, sshd, sessions."""
        return self.room.processes(name, uid=uid)

    @property
    def broker(self) -> Process:
        """Its broker, the last one that was started."""
        return max(
            (its for its in self.processes() if "helpers.broker" in its.argv), key=lambda its: its.identity[::-1]
        )

    @property
    def listener(self) -> Process:
        """Its listening sshd. Between fork and exec a child has its title too, but not its parent.

        One that starts itself anew has no title until it listens again.
        """
        supervisor = self.pid  # once: it looks at all that lives on the machine

        def listening() -> list[Process]:
            children = [its for its in self.processes("sshd") if its.parent_pid == supervisor]
            return [its for its in children if "[listener]" in its.argv[0]]

        return max(wait_until(listening, "sshd listens"), key=lambda its: its.identity[::-1])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to ``gatewayctl serve``."""
        os.kill(self.pid, number)

    def wait_exit(self, *, timeout_s: float = 20.0) -> int:
        """Wait until ``gatewayctl serve`` ends; its exit status, negative for a signal."""
        return self._process.wait(timeout_s)

    def stop(self, *, timeout_s: float = 20.0) -> int:
        """Send SIGTERM, and return the exit status; AssertionError when it does not leave in time."""
        self.signal(signal.SIGTERM)
        try:
            return self.wait_exit(timeout_s=timeout_s)
        except subprocess.TimeoutExpired as error:
            message = f"the gateway does not leave on SIGTERM; its log:\n{self.log_text()}"
            raise AssertionError(message) from error

    def close(self) -> None:
        """End it and everything it started, with SIGTERM first; what it leaves goes with its namespaces."""
        try:
            if self._process.poll() is None:
                self.stop()
        finally:
            self.room.close()
            self._process.wait()
