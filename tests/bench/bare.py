"""Stock sshd alone, beside the gateway: the jump host of ``ssh -J``, and what the gateway's load is compared with."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from lab import client
from lab.gateway import ADDRESS
from lab.room import PLAIN_ENVIRONMENT, Room
from lab.users import make_key
from lab.waiting import LogFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.bench import Lab

GREETING = "bare sshd"


class BareSshd:
    """An sshd with a static AuthorizedKeysFile for root, in the gateway's network; it ends with the lab.

    Args:
        lab: The lab.
        port: Its TCP port.
        forced: Answer every session with `GREETING`, and nothing else.
    """

    def __init__(self, lab: Lab, port: int, *, forced: bool) -> None:
        """Start it, and wait until it listens."""
        self._lab, self._port = lab, port
        directory = lab.directory / f"bare-{port}"
        directory.mkdir()
        host_key, self._key = make_key(directory / "host_key"), make_key(directory / "client")
        (directory / "authorized_keys").write_text(f"{self._key.public}\n")
        lines = [
            f"Port {port}",
            f"ListenAddress {ADDRESS}",
            f"HostKey {host_key.private}",
            f"AuthorizedKeysFile {directory}/authorized_keys",
            "StrictModes no",
            "UsePAM no",
            "PermitRootLogin prohibit-password",
            "PidFile none",
            "UseDNS no",
            "PrintMotd no",
            "PrintLastLog no",
            "MaxStartups 500",
            "LogLevel VERBOSE",
            *([f"ForceCommand exec echo {GREETING}"] if forced else []),
        ]
        config = directory / "sshd_config"
        config.write_text("".join(f"{line}\n" for line in lines))
        self._known_hosts = directory / "known_hosts"
        self._known_hosts.write_text(f"[{ADDRESS}]:{port} {host_key.public}\n")
        with (directory / "errors").open("ab") as errors:
            self.room = Room(
                "bare",
                errors=errors,
                setup=[
                    ["mount", "--no-mtab", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/var/log"],
                    ["touch", "/var/log/wtmp", "/var/log/lastlog"],
                    ["mkdir", "-p", "/run/sshd"],
                    # Root's shell would read what the machine's owner has in ~/.bashrc.
                    ["mount", "--no-mtab", "-t", "tmpfs", "-o", "mode=0700", "tmpfs", "/root"],
                ],
                network_of=lab.near,
            )
            lab.defer(self.room.close)
            log = LogFile(directory / "log")
            subprocess.Popen(
                self.room.argv(["/usr/sbin/sshd", "-D", "-f", str(config), "-E", str(log.path)]),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=PLAIN_ENVIRONMENT,
                start_new_session=True,
            )
        log.wait_for("Server listening on")

    def argv(self, *, options: Sequence[str] = (), command: Sequence[str] = ()) -> list[str]:
        """Return the command line of a login on it."""
        return client.ssh_argv(
            "root",
            host=ADDRESS,
            port=self._port,
            known_hosts=self._known_hosts,
            key=self._key.private,
            options=options,
            command=command,
        )

    def jump_options(self) -> list[str]:
        """Return the options by which ssh goes through it: what ``-J`` stands for (ssh(1))."""
        hop = self.argv(options=["-W", "%h:%p"])
        return ["-o", f"ProxyCommand={' '.join(hop)}"]
