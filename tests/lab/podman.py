"""A gateway in a container, in the lab's network, run as docs/install.md says to run it."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from lab import client
from lab.gateway import ADDRESS
from lab.processes import namespace_id, processes_in
from lab.waiting import wait_until
from lab.wan import FAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lab.bench import Lab
    from lab.processes import Process
    from lab.users import User

PODMAN = Path(__file__).parents[2] / ".ci" / "podman"

CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "KILL", "SETGID", "SETUID", "SYS_CHROOT")
"""All that the container needs: tests/image takes them away one by one."""

_numbers = itertools.count(1)


def podman(*arguments: str, check: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run podman, and return what it printed; CalledProcessError when it fails."""
    return subprocess.run(
        [str(PODMAN), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=check,
        timeout=timeout_s,
        start_new_session=True,
    )


class Keys:
    """A directory for ``/keys`` and one for ``/etc/gateway``, as an operator prepares them.

    Args:
        lab: Whose gateway key and host keys are in it.
        name: What to call them; taken anew, they keep what is in them.
    """

    def __init__(self, lab: Lab, name: str) -> None:
        """Write what a gateway with a key of its own has."""
        self.keys, self.state = lab.directory / f"{name}-keys", lab.directory / f"{name}-state"
        self.keys.mkdir()
        self.state.mkdir()
        self.write("id_ed25519", lab.gateway_key.private.read_text(), mode=0o600)
        self.write("known_hosts", lab.known_hosts.read_text())

    def write(self, name: str, text: str, *, mode: int = 0o644) -> Path:
        """Write a file into ``/keys``."""
        path = self.keys / name
        path.touch(mode=mode)
        path.write_text(text)
        path.chmod(mode)
        return path

    def known_hosts(self, port: int) -> Path:
        """Return what a client has to know of a gateway on a port that has been there once."""
        path = self.state.with_name(f"{self.state.name}-known_hosts-{port}")
        path.write_text(f"[{ADDRESS}]:{port} {(self.state / 'host_key.pub').read_text()}")
        return path


class Container:
    """A container; ends with ``close``.

    Args:
        lab: Whose network it is in.
        image: The image.
        keys: What is mounted.
        environment: Settings on top of REMOTE_HOST; None as a value takes one away.
        capabilities: What it may do.
        options: Options of ``podman run`` on top.
    """

    def __init__(
        self,
        lab: Lab,
        image: str,
        keys: Keys,
        *,
        environment: Mapping[str, str | None] | None = None,
        capabilities: Sequence[str] = CAPABILITIES,
        options: Sequence[str] = (),
    ) -> None:
        """Start it, on a port of its own."""
        self._lab, self._keys = lab, keys
        number = next(_numbers)
        self.name, self.port = f"smg-lab-{os.getpid()}-{number}", 3000 + number
        settings = {"REMOTE_HOST": FAR_IPV4, "GATEWAY_PORT": str(self.port), **(environment or {})}
        arguments = [
            f"--name={self.name}",
            f"--network=ns:/proc/{lab.near.pid}/ns/net",
            "--read-only",
            "--read-only-tmpfs=false",
            "--tmpfs=/run:mode=0755,size=64m",
            "--tmpfs=/tmp:mode=1777,size=16m",
            "--cap-drop=ALL",
            *(f"--cap-add={capability}" for capability in capabilities),
            "--security-opt=no-new-privileges",
            # Without systemd there is nobody to ask for it at intervals; `is_healthy` asks.
            "--health-interval=disable",
            f"--volume={keys.keys}:/keys:ro",
            f"--volume={keys.state}:/etc/gateway",
            *(f"--env={name}={value}" for name, value in settings.items() if value is not None),
        ]
        podman("run", "--detach", *arguments, *options, image)

    def inspect(self, what: str) -> str:
        """Return a part of what podman knows of it, by a Go template."""
        return podman("container", "inspect", "--format", what, self.name).stdout.strip()

    @property
    def pid(self) -> int:
        """The process id of its process 1 as the host sees it."""
        return int(self.inspect("{{.State.Pid}}"))

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.inspect("{{.State.Running}}") == "true"

    @property
    def status(self) -> int:
        """The exit status of process 1."""
        return int(self.inspect("{{.State.ExitCode}}"))

    def processes(self, name: str | None = None) -> list[Process]:
        """List its processes, by the kernel's name for them where given."""
        found = processes_in(namespace_id(self.pid, "pid"))
        return [process for process in found if name in {None, process.name}]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it as root."""
        return podman("exec", self.name, *command, check=check)

    def is_healthy(self) -> bool:
        """Run the image's own health check."""
        return podman("healthcheck", "run", self.name, check=False).returncode == 0

    def log(self) -> str:
        """Return what it wrote to standard output and error."""
        done = podman("logs", self.name)
        return done.stdout + done.stderr

    def argv(self, user: User | str, *command: str, options: Sequence[str] = (), key: Path | None = None) -> list[str]:
        """Return the command line of ``ssh`` through it; ``client.ssh_argv`` has the arguments."""
        return client.ssh_argv(
            user,
            host=ADDRESS,
            port=self.port,
            known_hosts=self._keys.known_hosts(self.port),
            key=key,
            options=options,
            command=command,
        )

    def wait_healthy(self) -> None:
        """Wait until its health check is green."""
        wait_until(lambda: not self.running or self.is_healthy(), "the container is healthy")
        assert self.running, self.log()

    def stop(self, timeout_s: int = 15) -> None:
        """Stop it as ``docker stop`` does: SIGTERM, and SIGKILL after so many seconds."""
        podman("stop", f"--time={timeout_s}", self.name)

    def close(self) -> None:
        """Remove it, and whatever runs in it."""
        podman("rm", "--force", "--volumes", self.name, check=False)
