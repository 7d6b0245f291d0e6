"""The runtime directory: what is where, and how it is made ready."""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gatewayctl.runtime import processes
from gatewayctl.settings.key_files import KeyFileError
from helpers.broker.accounts.userdb import SERVICE
from helpers.protocol.errors import GatewayError, SettingsError
from helpers.protocol.messages import BACKLOG

SYSTEM_USERDB = Path("/run/systemd/userdb")
"""Where nss-systemd looks for the sockets of user databases (systemd's docs/USER_GROUP_API.md)."""

SYSTEM_LOG = Path("/dev/log")
"""Where syslog(3) sends messages (glibc's _PATH_LOG)."""

_MAY_PASS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""What is wrong with the machine at the moment, and not with a setting (errno(3))."""


@dataclass(frozen=True)
class Runtime:
    """Paths below GATEWAY_RUNTIME_DIR.

    Attributes:
        root: The directory itself.
    """

    root: Path

    @property
    def broker_socket(self) -> Path:
        """Where the helpers ask the broker."""
        return self.root / "broker.sock"

    @property
    def agent_socket(self) -> Path:
        """Where ssh, run for a session, asks for signatures."""
        return self.root / "agent.sock"

    @property
    def log_socket(self) -> Path:
        """What our sshd sees as `SYSTEM_LOG`."""
        return self.root / "log.sock"

    @property
    def userdb(self) -> Path:
        """The directory that our sshd sees as `SYSTEM_USERDB`."""
        return self.root / "userdb"

    @property
    def state(self) -> Path:
        """What only the broker may read and write."""
        return self.root / "state"

    @property
    def home(self) -> Path:
        """Where users' homes are made: see `gatewayctl.supervisor.home_directories`."""
        return self.root / "home"

    @property
    def authorized_keys(self) -> Path:
        """The keys that sshd knows by itself: see `gatewayctl.supervisor.authorized_keys_files`."""
        return self.root / "authorized_keys"

    @property
    def sshd_config(self) -> Path:
        """What our sshd reads."""
        return self.root / "sshd_config"

    @property
    def pid_file(self) -> Path:
        """Written by sshd once it listens."""
        return self.root / "sshd.pid"

    @property
    def private(self) -> Path:
        """Files that take the place of the host's in our sshd's mount namespace."""
        return self.root / "private"

    @contextmanager
    def made_ready(self) -> Iterator[None]:
        """Say so in one sentence where something cannot be made in the directory.

        Raises:
            SettingsError: Something is in the way, or nothing may be written there.
            GatewayError: There is no space left, or the like: what may pass, so that systemd tries again.
        """
        try:
            yield
        except OSError as exc:
            msg = f"GATEWAY_RUNTIME_DIR {self.root} cannot be made ready ({exc.strerror}: {exc.filename or self.root})"
            raise (GatewayError if exc.errno in _MAY_PASS else SettingsError)(msg) from exc

    def prepare(self) -> None:
        """Make the directories; where a gateway runs in them already, nothing changes for it.

        Raises:
            SettingsError: They cannot be made, or others may write where only root should.
            GatewayError: See `made_ready`.
        """
        os.umask(0o022)  # the modes below are meant; a stricter umask would close what unprivileged helpers must enter
        # Before anything is made or given away there.
        check_root_only(next(path for path in (self.root, *self.root.parents) if path.exists()), "GATEWAY_RUNTIME_DIR")
        with self.made_ready():
            for directory in (self.root, self.userdb, self.home, self.private, Path("/run/sshd")):
                directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            self.state.mkdir(mode=0o700, exist_ok=True)
            self.authorized_keys.mkdir(mode=0o711, exist_ok=True)  # sshd reads a file as its user; nobody lists them
        check_root_only(self.root, "GATEWAY_RUNTIME_DIR")

    def lock(self) -> int:
        """Take the directory for this process, for as long as it lives.

        Returns:
            The file descriptor that holds the lock.

        Raises:
            SettingsError: Another gateway has it.
            GatewayError: See `made_ready`.
        """
        with self.made_ready():
            fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(fd)
            msg = f"another gateway runs in GATEWAY_RUNTIME_DIR {self.root}; stop it, or choose another directory"
            raise SettingsError(msg) from exc
        return fd

    def give_state(self, broker_uid: int) -> None:
        """Make `state` the broker's; the range of uids may have changed since the last start.

        Only who holds the `lock` may: another gateway's broker would lose its own.

        Args:
            broker_uid: The uid that owns it from now on.

        Raises:
            SettingsError: It cannot be given away.
            GatewayError: See `made_ready`.
        """
        with self.made_ready():
            for path in self.state.iterdir():
                # What has a second name elsewhere the last broker did not make (link(2)).
                if os.lstat(path).st_nlink == 1:
                    os.chown(path, broker_uid, broker_uid, follow_symlinks=False)
            os.chown(self.state, broker_uid, broker_uid)

    def listen(self, *, private: bool) -> tuple[int, int, int]:
        """Make the listening sockets.

        Args:
            private: Whether our sshd has a mount namespace of its own, in which `userdb` is what nss-systemd sees.

        Returns:
            The file descriptors of the broker's socket, of the user database's and of the agent's.

        Raises:
            SettingsError: Another gateway's users are what the machine sees.
            GatewayError: See `made_ready`.
        """
        userdb = self.userdb if private else SYSTEM_USERDB
        if not private and _has_listener(userdb / SERVICE):
            msg = (
                "another gateway runs on this machine, and where no mount namespace may be made there can be only one: "
                f"{userdb / SERVICE} is what all see"
            )
            raise SettingsError(msg)
        with self.made_ready():
            userdb.mkdir(mode=0o755, parents=True, exist_ok=True)
            return _listen(self.broker_socket), _listen(userdb / SERVICE), _listen(self.agent_socket)

    def listen_log(self, *, private: bool) -> socket.socket:
        """Make the socket to which our sshd logs.

        Args:
            private: As for `listen`: else it stands in the place of the machine's own syslog.

        Raises:
            SettingsError: That place is taken.
            GatewayError: See `made_ready`.
        """
        path = self.log_socket if private else SYSTEM_LOG
        if not private and path.is_socket():
            msg = f"{path} is another program's here; set GATEWAY_LOG=syslog to log there"
            raise SettingsError(msg)
        with self.made_ready():
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            with suppress(FileNotFoundError):
                path.unlink()
            sock.bind(os.fspath(path))
            path.chmod(0o666)  # sshd logs as the user whose session it runs, too
            return sock

    def remove_sockets(self, *, private: bool) -> None:
        """Remove what `listen` made, so that no door is left that only looks like one."""
        userdb = self.userdb if private else SYSTEM_USERDB
        for path in (self.broker_socket, userdb / SERVICE, self.agent_socket, self.log_socket):
            path.unlink(missing_ok=True)


def _has_listener(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(0)
        return sock.connect_ex(os.fspath(path)) in {0, errno.EAGAIN}  # the latter where too many wait


def _listen(path: Path) -> int:
    with suppress(FileNotFoundError):
        path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(os.fspath(path))
        path.chmod(0o666)  # whoever connects is known by SO_PEERCRED
        sock.listen(BACKLOG)
        sock.settimeout(0)
        return processes.high(sock.fileno())


def check_root_only(path: Path, what: str) -> None:
    """Check that only root may change what is at a path, and that everyone may get there.

    sshd asks the same of what it starts (sshd_config(5), AuthorizedKeysCommand).

    Args:
        path: A file or directory.
        what: What it is, for the error.

    Raises:
        SettingsError: Somebody else owns a directory on the way or may write to it, or not everyone may enter it.
    """
    resolved = path.resolve()
    for part in (resolved, *resolved.parents):
        info = part.stat()
        if info.st_uid != 0 or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            msg = (
                f"{what} {path} is not safe: {part} must belong to root and be writable by root alone; "
                "use a directory such as /opt/gateway or /run/gateway"
            )
            raise SettingsError(msg)
        if stat.S_ISDIR(info.st_mode) and not info.st_mode & stat.S_IXOTH:
            msg = (
                f"{what} {path} cannot be reached by the gateway's unprivileged users: {part} is closed to them; "
                "use a directory that everyone may enter, such as /opt/gateway or /run/gateway"
            )
            raise SettingsError(msg)


def check_uids_free(
    uids: range,
    accounts: Iterable[tuple[str, int]] | None = None,
    subordinate: Iterable[Path] = (Path("/etc/subuid"), Path("/etc/subgid")),
) -> None:
    """Check that nobody else on the machine has one of the uids, or a group their number.

    By its uid the broker knows whose a process is; its gid is the same number, and what it may do besides.

    Args:
        uids: GATEWAY_UID_RANGE.
        accounts: Names and numbers of the machine's accounts and groups; None asks the system for those that it lists.
        subordinate: The uids and gids that accounts may give to their containers (subuid(5), subgid(5)).

    Raises:
        SettingsError: Somebody has; the sentence names one.
    """
    if accounts is None:
        accounts = [(entry.pw_name, entry.pw_uid) for entry in pwd.getpwall()]
        accounts += [(f"group {entry.gr_name}", entry.gr_gid) for entry in grp.getgrall()]
    taken = [(name, range(number, number + 1)) for name, number in accounts]
    for path in filter(Path.is_file, subordinate):
        lines = [line.split(":") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        for name, *numbers in lines:
            with suppress(ValueError):
                first, count = map(int, numbers)
                taken.append((f"containers of {name}", range(first, first + count)))
    for name, theirs in taken:
        if theirs.start < uids.stop and uids.start < theirs.stop:
            msg = (
                f"GATEWAY_UID_RANGE {uids.start}:{uids.stop - 1} has uids that others have on this machine "
                f"({name}: {theirs.start}), whose processes would pass for the gateway's users, or these for theirs; "
                "choose another range"
            )
            raise SettingsError(msg)


def ensure_host_key(path: Path) -> bool:
    """Make the gateway's host key when it is missing; an existing one is never touched.

    Args:
        path: GATEWAY_HOST_KEY_PATH.

    Returns:
        Whether it was made now.

    Raises:
        KeyFileError: It is readable by others than root.
        SettingsError: It cannot be made or read, or is not a file.
    """
    try:
        info = path.stat()
    except FileNotFoundError:
        _make_host_key(path)
        return True
    except OSError as exc:
        msg = f"GATEWAY_HOST_KEY_PATH {path} cannot be read ({exc.strerror})"
        raise SettingsError(msg) from exc
    if not stat.S_ISREG(info.st_mode):
        # A container engine makes a directory of what is to be mounted and is not there.
        msg = f"GATEWAY_HOST_KEY_PATH {path} is not a file; give the path of one, which is made when it is missing"
        raise SettingsError(msg)
    if info.st_uid != 0 or info.st_mode & 0o077:
        msg = f"GATEWAY_HOST_KEY_PATH {path} is readable by others than root: chown root {path} && chmod 0600 {path}"
        raise KeyFileError(msg)
    return False


def _make_host_key(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / "key"
            # RFC 8709; ssh-keygen writes the private half with mode 0600.
            argv = [
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                "ssh-mosh-gateway",
                "-f",
                os.fspath(made),
            ]
            subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL)
            with suppress(FileExistsError):
                os.link(made, path)  # fails where another gateway was faster, whose key then is the key
                made.with_suffix(".pub").replace(path.with_name(path.name + ".pub"))
    except (OSError, subprocess.CalledProcessError) as exc:
        msg = f"GATEWAY_HOST_KEY_PATH {path} cannot be made ({exc}); its directory must be writable for root"
        raise SettingsError(msg) from exc
