"""The embedded remote: a room with users of its own, a stock sshd, and mosh-server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lab.processes import child_of
from lab.room import PLAIN_ENVIRONMENT, Room
from lab.users import KeyPair, User, UserDatabase, make_key
from lab.waiting import LogFile, wait_until
from lab.wan import FAR_IPV4, FAR_IPV6

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import IO

    from lab.processes import Process

PORT = 22

# As Debian ships it but for UsePAM, which would read the host's accounts, and for what lets tests run side by
# side: all of them come from one address.
_SSHD_CONFIG = f"""\
Port {PORT}
UsePAM no
KbdInteractiveAuthentication no
PasswordAuthentication no
PermitRootLogin prohibit-password
PidFile none
PrintMotd no
UseDNS no
MaxStartups 200
AcceptEnv LANG LC_*
Subsystem sftp /usr/lib/openssh/sftp-server
LogLevel VERBOSE
"""

TREE = Path(os.environ["DEBIAN_TREES"], os.environ["REMOTE_ON"]) if os.environ.get("REMOTE_ON") else Path("/")
"""The remote's files: this machine's, or those of the release of Debian that ``make test REMOTE_ON=`` names, so that
gateway and remote have programs of different versions."""

_BASH_PROFILE = r"""PS1='\u@\h:\w\$ '
unset PROMPT_COMMAND
"""


class Remote:
    """The remote host.

    Args:
        directory: For its files; exists, root-owned, below /run.
        errors: A file for complaints of the set-up.
    """

    def __init__(self, directory: Path, *, errors: IO[bytes]) -> None:
        """Make the room; ``start_sshd`` starts the daemon."""
        self._directory = directory
        self._errors = errors
        self._sshd: subprocess.Popen[bytes] | None = None
        self._users = UserDatabase(directory / "etc", hosts=["127.0.0.1 localhost", "::1 localhost"])
        self.log = LogFile(directory / "sshd.log")
        self.host_keys: list[KeyPair] = []
        self.room = Room("remote", errors=errors, setup=self._mounts())
        self.make_host_keys()

    def _mounts(self) -> list[list[str]]:
        """Return the commands that hide the host's accounts, homes, logs and run-time files."""
        run = self._directory / "run"
        run.mkdir()
        own = self._directory.parent
        commands = [
            *(_enter(TREE, own) if Path("/") != TREE else []),
            # Our own files stay in view below the new /run, which hides userdb, nscd, utmp and the rest.
            ["mount", "--no-mtab", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(run)],
            ["mkdir", "-p", f"{run}/{own.relative_to('/run')}", f"{run}/sshd"],
            ["mount", "--no-mtab", "--bind", str(own), f"{run}/{own.relative_to('/run')}"],
            ["mount", "--no-mtab", "--move", str(run), "/run"],
            ["mount", "--no-mtab", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/home"],
            ["mount", "--no-mtab", "-t", "tmpfs", "-o", "mode=0700", "tmpfs", "/root"],
            ["mount", "--no-mtab", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp"],  # noqa: S108 - the room's own
            ["mount", "--no-mtab", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/var/log"],
            ["touch", "/run/utmp", "/var/log/wtmp", "/var/log/lastlog"],
        ]
        for file in UserDatabase.FILES:
            target = f"/etc/{file}"
            if os.path.exists(TREE / target[1:]):  # noqa: PTH110 - a dangling link would be no mount point
                commands.append(["mount", "--no-mtab", "--bind", str(self._directory / "etc" / file), target])
        return commands

    # Host keys and the daemon

    def make_host_keys(self, kinds: Sequence[str] = ("ed25519", "ecdsa")) -> None:
        """Make new host keys of these types (``ssh-keygen -t``); the next ``start_sshd`` uses them."""
        where = self._directory / "host_keys"
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(mode=0o700)
        self.host_keys = [make_key(where / f"ssh_host_{kind}_key", kind=kind) for kind in kinds]
        config = _SSHD_CONFIG + "".join(f"HostKey {key.private}\n" for key in self.host_keys)
        # PerSourcePenalties came with OpenSSH 9.8 and would ban the gateway's address for what tests provoke.
        if self.understands("PerSourcePenalties=no"):
            config += "PerSourcePenalties no\n"
        (self._directory / "sshd_config").write_text(config)

    def understands(self, option: str) -> bool:
        """Tell whether this sshd knows an option."""
        command = self.room.argv(["/usr/sbin/sshd", "-G", "-f", "/dev/null", "-o", option])
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def rotate_host_keys(self, kinds: Sequence[str] = ("ed25519", "ecdsa")) -> None:
        """Replace the host keys and restart the daemon, as after a re-installation."""
        self.make_host_keys(kinds)
        self.stop_sshd()
        self.start_sshd()

    def set_option(self, line: str) -> None:
        """Put a line of sshd_config(5) before all others, where it wins, and restart the daemon."""
        config = self._directory / "sshd_config"
        config.write_text(f"{line}\n{config.read_text()}")
        self.stop_sshd()
        self.start_sshd()

    def known_hosts(self, *hosts: str) -> str:
        """Return lines of known_hosts for these names (default: both addresses), one for each host key."""
        names = ",".join(hosts or (FAR_IPV4, FAR_IPV6))
        return "".join(f"{names} {' '.join(key.public.split()[:2])}\n" for key in self.host_keys)

    def start_sshd(self) -> None:
        """Start the daemon and wait until it listens."""
        since = self.log.mark()
        config, log = self._directory / "sshd_config", self.log.path
        self._sshd = subprocess.Popen(
            self.room.argv(["/usr/sbin/sshd", "-D", "-f", str(config), "-E", str(log)]),
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            env=PLAIN_ENVIRONMENT,
            start_new_session=True,
        )
        listens = "Server listening on 0.0.0.0"
        daemon = self._sshd
        wait_until(
            lambda: daemon.poll() is not None or self.log.matches(listens, since=since), "the remote's sshd listens"
        )
        if daemon.poll() is not None:
            text = "\n".join([*self.log.lines(since=since), Path(self._errors.name).read_text()])
            raise RuntimeError(f"the remote's sshd ended at its start: {text[-2000:]}")

    def stop_sshd(self, *, drop_connections: bool = True) -> None:
        """Stop the daemon: the port refuses connections from now on.

        Args:
            drop_connections: Also kill what serves the live connections, without a goodbye. Sessions of
                mosh-server live on, as they do not depend on sshd.
        """
        if self._sshd is None:
            return
        listener = child_of(self._sshd.pid)
        names = {"sshd", "sshd-session", "sshd-auth"} if drop_connections else set()
        doomed = {process.pid for process in self.room.processes() if process.name in names}
        for pid in doomed | ({listener} if listener else set()):
            with suppress(ProcessLookupError):  # it went with the one before it
                os.kill(pid, signal.SIGKILL)
        self._sshd.wait()
        self._sshd = None
        wait_until(lambda: not doomed & {its.pid for its in self.room.processes()}, "the remote's sshd is gone")

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Let the daemon hang for a while: connections are established by the kernel, and nobody says anything."""
        assert self._sshd is not None
        listener = child_of(self._sshd.pid)
        assert listener is not None
        os.kill(listener, signal.SIGSTOP)
        try:
            yield
        finally:
            # nsenter(1) stops with what it started.
            for pid in (listener, self._sshd.pid):
                os.kill(pid, signal.SIGCONT)

    # Users

    def add_user(self, name: str, key: KeyPair, *, shell: str = "/bin/bash", authorized: Iterable[str] = ()) -> User:
        """Add a user with a home directory.

        Args:
            name: Login name; anything that passwd(5) can hold, ``-v`` and ``.x`` too.
            key: The key pair of the user's client; it is not authorized by itself.
            shell: Login shell.
            authorized: Lines for ``~/.ssh/authorized_keys``.
        """
        uid, home = self._users.add(name, shell=shell)
        user = User(name, uid, home, key)
        self.room.path(home).mkdir(mode=0o755, exist_ok=True)
        self.write_file(user, ".bash_profile", _BASH_PROFILE)
        self.write_file(user, ".hushlogin", "")
        self.authorize(user, authorized)
        os.chown(self.room.path(home), uid, uid)
        return user

    def expire(self, *names: str) -> None:
        """Let the accounts of users end in the past, as ``chage -E`` does; sshd asks where it has ``UsePAM yes``."""
        self._users.expire(names)

    def authorize(self, user: User, lines: Iterable[str]) -> None:
        """Replace the user's ``~/.ssh/authorized_keys``; no lines leave an empty file."""
        self.write_file(user, ".ssh/authorized_keys", "".join(f"{line}\n" for line in lines), mode=0o600)

    def write_file(self, user: User, path: str, text: str, *, mode: int = 0o644) -> None:
        """Write a file that belongs to the user, at a path relative to the home directory.

        In one step, as editors do it: the gateway, which may be about to read it, finds all of the old or of the new.
        """
        home = self.room.path(user.home)
        target = home / path
        if not target.parent.exists():
            target.parent.mkdir(mode=0o700)
            os.chown(target.parent, user.uid, user.uid)
        new = target.with_name(f"{target.name}.new")
        new.write_text(text)
        new.chmod(mode)
        os.chown(new, user.uid, user.uid)
        new.replace(target)

    def read_file(self, user: User, path: str) -> str:
        """Read a file, at a path relative to the user's home directory."""
        return (self.room.path(user.home) / path).read_text()

    # What happened

    def connections(self, *, since: int = 0) -> int:
        """Count the SSH connections that reached the daemon, from a line of the log on."""
        return len(self.log.matches(r"Connection from \S+ port ", since=since))

    def accepted(self, user: User, *, since: int = 0) -> int:
        """Count the SSH logins of a user that the daemon accepted, from a line of the log on."""
        name = user.name.replace(".", r"\.")
        return len(self.log.matches(rf"Accepted \S+ for {name} from ", since=since))

    def processes(self, name: str | None = None, *, user: User | None = None) -> list[Process]:
        """List live processes, by the kernel's name for them (``mosh-server``) and by user."""
        return self.room.processes(name, uid=None if user is None else user.uid)

    # What is missing

    @contextmanager
    def without_mosh_server(self) -> Iterator[None]:
        """Take ``mosh-server`` away for a while, as if it had never been installed."""
        real = self._directory / "usr-bin"
        real.mkdir(exist_ok=True)
        self.room.run(["mount", "--no-mtab", "--bind", "/usr/bin", str(real)])
        self.room.run(["mount", "--no-mtab", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/usr/bin"])
        self.room.run([f"{real}/cp", "-rs", f"{real}/.", "/usr/bin/"])
        self.room.run([f"{real}/rm", "/usr/bin/mosh-server"])
        try:
            yield
        finally:
            self.room.run([f"{real}/umount", "--lazy", "/usr/bin"])
            self.room.run(["umount", "--lazy", str(real)])

    @contextmanager
    def without_utf8_locale(self) -> Iterator[None]:
        """Take every locale but C and POSIX away for a while."""
        self.room.run(["mount", "--no-mtab", "-t", "tmpfs", "tmpfs", "/usr/lib/locale"])
        try:
            yield
        finally:
            self.room.run(["umount", "--lazy", "/usr/lib/locale"])

    def close(self) -> None:
        """End it and everything in it."""
        self.room.close()
        if self._sshd is not None:
            self._sshd.wait()


def _enter(tree: Path, own: Path) -> list[list[str]]:
    """Return the commands that make a tree of files the root directory, with a directory of ours at its place."""
    mount = ["mount", "--no-mtab"]
    return [
        [*mount, "--bind", str(tree), str(tree)],
        *([*mount, "--rbind", f"/{name}", f"{tree}/{name}"] for name in ("proc", "sys", "dev")),
        [*mount, "-t", "tmpfs", "-o", "mode=0755", "tmpfs", f"{tree}/run"],
        ["mkdir", "-p", f"{tree}{own}", f"{tree}/run/old"],
        [*mount, "--bind", str(own), f"{tree}{own}"],
        ["pivot_root", str(tree), f"{tree}/run/old"],
        ["umount", "--lazy", "/run/old"],
    ]
