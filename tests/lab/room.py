"""A room: namespaces of its own (mounts, processes, host name, and a network or a shared one) with an init."""

from __future__ import annotations

import ctypes
import json
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lab.processes import Process, namespace_id, processes_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import IO

_PID1 = Path(__file__).with_name("pid1.py")

# Linux, sched.h. Python has os.setns from 3.12 on.
_CLONE_NEWNET = 0x40000000

# Ends a process with the one that started it, even when that one was killed with SIGKILL.
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")

# Nothing of the developer's environment reaches the programs under test.
PLAIN_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}


@contextmanager
def entered_network(namespace: str) -> Iterator[None]:
    """Put the calling thread, and no other, into a network namespace (a path) and back again."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(descriptor: int) -> None:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")

    with Path("/proc/thread-self/ns/net").open("rb") as here, Path(namespace).open("rb") as there:
        enter(there.fileno())
        try:
            yield
        finally:
            enter(here.fileno())


class Room:
    """Namespaces that live until ``close``.

    Args:
        hostname: What ``hostname`` says inside.
        setup: Commands (argv lists) that prepare mounts and network, run as root inside before anyone enters.
        network_of: The room whose network this one shares; None for a network of its own, with ``lo`` up.
        errors: A file for what the init and the set-up commands complain about.
    """

    def __init__(
        self,
        hostname: str,
        *,
        errors: IO[bytes],
        setup: Sequence[Sequence[str]] = (),
        network_of: Room | None = None,
    ) -> None:
        """Make the namespaces and wait until they are ready."""
        commands = [list(command) for command in setup]
        unshare = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child"]
        if network_of is None:
            enter: list[str] = []
            unshare.append("--net")
            commands.insert(0, ["ip", "link", "set", "lo", "up"])
        else:
            enter = ["nsenter", f"--net=/proc/{network_of.pid}/ns/net", "--"]
        init = [sys.executable, "-I", "-S", str(_PID1), hostname, json.dumps(commands)]
        self._holder = subprocess.Popen(
            [*DIE_WITH_PARENT, *enter, *unshare, "--", *init],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=PLAIN_ENVIRONMENT,
            start_new_session=True,  # Ctrl-C is for the lab, which then closes its rooms in order
        )
        # Two lines, or an end of file at once when something failed.
        assert self._holder.stdout is not None
        words = [self._holder.stdout.readline().strip() for _ in range(2)]
        if words[1] != b"ready":
            self.close()
            message = f"the room {hostname} could not be made: {Path(errors.name).read_text()[-2000:]}"
            raise RuntimeError(message)
        self.pid: int = int(words[0])
        self.pid_namespace = namespace_id(self.pid, "pid")
        self.net_namespace = namespace_id(self.pid, "net")

    def argv(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs a command inside all of the room."""
        # -r, the root directory: without it a lab in a chroot would find itself outside.
        return [*DIE_WITH_PARENT, "nsenter", f"--target={self.pid}", "-m", "-r", "-u", "-n", "-p", "--", *command]

    def network_argv(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs a command in the room's network only; its pid is the command's."""
        return [*DIE_WITH_PARENT, "nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *command]

    def run(
        self, command: Sequence[str], *, stdin: str = "", timeout_s: float = 20.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside as root and return its output; CalledProcessError when it fails."""
        return subprocess.run(
            self.argv(command),
            input=stdin,
            capture_output=True,
            text=True,
            check=True,
            timeout=timeout_s,
            env=PLAIN_ENVIRONMENT,
        )

    def path(self, inside: str) -> Path:
        """Return where the host sees an absolute path of the room (``proc(5)``, /proc/PID/root)."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def processes(self, name: str | None = None, *, uid: int | None = None) -> list[Process]:
        """List the live processes inside but the init, by name and user id where given."""
        return [
            process
            for process in processes_in(self.pid_namespace)
            if process.pid != self.pid and name in {None, process.name} and uid in {None, process.uid}
        ]

    @contextmanager
    def network(self) -> Iterator[None]:
        """Put the calling thread into the room's network: sockets made meanwhile stay in it."""
        with entered_network(f"/proc/{self.pid}/ns/net"):
            yield

    def connect(self, host: str, port: int, *, timeout_s: float = 5.0) -> socket.socket:
        """Connect by TCP from inside the room's network."""
        with self.network():
            return socket.create_connection((host, port), timeout=timeout_s)

    def close(self) -> None:
        """End every process inside; the kernel removes the namespaces with the last one."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        try:
            self._holder.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()
        self._holder.stdout.close()
