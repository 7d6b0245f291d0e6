"""The runtime directory: its paths and their preparation."""

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
"""The directory of user databases' sockets (systemd's docs/USER_GROUP_API.md)."""

SYSTEM_LOG = Path("/dev/log")
"""The socket of syslog(3) (glibc's _PATH_LOG)."""

_MAY_PASS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""Errors that are caused by the machine's temporary state and not by a setting (errno(3))."""


@dataclass(frozen=True)
class Runtime:
    """Paths below GATEWAY_RUNTIME_DIR.

    Attributes:
        root: The directory itself.
    """

    root: Path

    @property
    def broker_socket(self) -> Path:
        """The broker's socket for the helpers."""
        return self.root / "broker.sock"

    @property
    def agent_socket(self) -> Path:
        """The broker's agent socket, for the sessions' ssh."""
        return self.root / "agent.sock"

    @property
    def log_socket(self) -> Path:
        """The socket that is `SYSTEM_LOG` for our sshd."""
        return self.root / "log.sock"

    @property
    def userdb(self) -> Path:
        """The directory that is `SYSTEM_USERDB` for our sshd."""
        return self.root / "userdb"

    @property
    def state(self) -> Path:
        """The directory that only the broker may enter."""
        return self.root / "state"

    @property
    def home(self) -> Path:
        """The directory of users' homes: see `gatewayctl.supervisor.home_directories`."""
        return self.root / "home"

    @property
    def authorized_keys(self) -> Path:
        """The directory of sshd's key files: see `gatewayctl.supervisor.authorized_keys_files`."""
        return self.root / "authorized_keys"

    @property
    def sshd_config(self) -> Path:
        """The directory with our sshd's configuration."""
        return self.root / "sshd_config"

    @property
    def pid_file(self) -> Path:
        """The file that sshd writes once it listens."""
        return self.root / "sshd.pid"

    def sshd_pid(self) -> int | None:
        """Read the pid of the listening sshd; None while none listens."""
        try:
            return int(self.pid_file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    @property
    def private(self) -> Path:
        """The files that replace the host's in our sshd's mount namespace."""
        return self.root / "private"

    @contextmanager
    def mapped_errors(self) -> Iterator[None]:
        """Map errors of the block, which creates files in the directory.

        Raises:
            SettingsError: A file is in the way, or the directory is not writable.
            GatewayError: A temporary error, such as no space left, after which systemd tries again.
        """
        try:
            yield
        except OSError as exc:
            msg = f"GATEWAY_RUNTIME_DIR {self.root} cannot be made ready ({exc.strerror}: {exc.filename or self.root})"
            raise (GatewayError if exc.errno in _MAY_PASS else SettingsError)(msg) from exc

    def prepare(self) -> None:
        """Make the directories; if a gateway already runs in them, nothing changes for it.

        Raises:
            SettingsError: They cannot be made, or other users can write to them.
            GatewayError: See `mapped_errors`.
        """
        os.umask(0o022)  # exactly the modes below; with a stricter umask unprivileged helpers could not enter
        # Before a file is created there, or its owner changed.
        check_root_only(next(path for path in (self.root, *self.root.parents) if path.exists()), "GATEWAY_RUNTIME_DIR")
        with self.mapped_errors():
            for directory in (self.root, self.userdb, self.home, self.private, Path("/run/sshd")):
                directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            self.state.mkdir(mode=0o700, exist_ok=True)
            self.authorized_keys.mkdir(
                mode=0o711, exist_ok=True
            )  # sshd reads each file as its user; only root lists them
        check_root_only(self.root, "GATEWAY_RUNTIME_DIR")

    def lock(self) -> int:
        """Lock the directory for the lifetime of this process.

        Returns:
            The file descriptor that holds the lock.

        Raises:
            SettingsError: Another gateway has it.
            GatewayError: See `mapped_errors`.
        """
        with self.mapped_errors():
            fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(fd)
            msg = f"another gateway runs in GATEWAY_RUNTIME_DIR {self.root}; stop it, or choose another directory"
            raise SettingsError(msg) from exc
        return fd

    def change_state_owner(self, broker_uid: int) -> None:
        """Change the owner of `state` to the broker; the range of uids may have changed since the last start.

        The caller must hold the `lock`: otherwise another gateway's broker would lose its directory.

        Args:
            broker_uid: The new owner.

        Raises:
            SettingsError: The owner cannot be changed.
            GatewayError: See `mapped_errors`.
        """
        with self.mapped_errors():
            for path in self.state.iterdir():
                # A file with more than one link was not made by the last broker (link(2)).
                if os.lstat(path).st_nlink == 1:
                    os.chown(path, broker_uid, broker_uid, follow_symlinks=False)
            os.chown(self.state, broker_uid, broker_uid)

    def listen(self, *, private: bool) -> tuple[int, int, int]:
        """Make the listening sockets.

        Args:
            private: Whether our sshd has a mount namespace of its own, in which nss-systemd uses `userdb`.

        Returns:
            The file descriptors of the broker's socket, of the user database's and of the agent's.

        Raises:
            SettingsError: Another gateway already provides users to the machine.
            GatewayError: See `mapped_errors`.
        """
        userdb = self.userdb if private else SYSTEM_USERDB
        if not private and _has_listener(userdb / SERVICE):
            msg = (
                "another gateway runs on this machine, and where no mount namespace may be made there can be only one: "
                f"{userdb / SERVICE} is what all see"
            )
            raise SettingsError(msg)
        with self.mapped_errors():
            userdb.mkdir(mode=0o755, parents=True, exist_ok=True)
            return _listen(self.broker_socket), _listen(userdb / SERVICE), _listen(self.agent_socket)

    def listen_log(self, *, private: bool) -> socket.socket:
        """Make the socket to which our sshd logs.

        Args:
            private: As for `listen`; otherwise the socket is the machine's own /dev/log.

        Raises:
            SettingsError: Another program listens there.
            GatewayError: See `mapped_errors`.
        """
        path = self.log_socket if private else SYSTEM_LOG
        if not private and path.is_socket():
            msg = f"{path} is another program's here; set GATEWAY_LOG=syslog to log there"
            raise SettingsError(msg)
        with self.mapped_errors():
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            with suppress(FileNotFoundError):
                path.unlink()
            sock.bind(os.fspath(path))
            path.chmod(0o666)  # sshd also logs as the session's user
            return sock

    def remove_sockets(self, *, private: bool) -> None:
        """Remove the sockets of `listen`, so that no client connects to a socket that is not served."""
        userdb = self.userdb if private else SYSTEM_USERDB
        for path in (self.broker_socket, userdb / SERVICE, self.agent_socket, self.log_socket):
            path.unlink(missing_ok=True)


def _has_listener(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(0)
        return sock.connect_ex(os.fspath(path)) in {0, errno.EAGAIN}  # EAGAIN: its queue is full


def _listen(path: Path) -> int:
    with suppress(FileNotFoundError):
        path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(os.fspath(path))
        path.chmod(0o666)  # peers are identified by SO_PEERCRED
        sock.listen(BACKLOG)
        sock.settimeout(0)
        return processes.dup_at_least_10(sock.fileno())


def check_root_only(path: Path, what: str) -> None:
    """Check that only root may change the file at a path, and that every user can reach it.

    sshd requires the same of the programs that it starts (sshd_config(5), AuthorizedKeysCommand).

    Args:
        path: A file or directory.
        what: Its description, for the error.

    Raises:
        SettingsError: Another user owns a directory on the way or may write to it, or some users cannot enter it.
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
    """Check that no other account on the machine has one of the uids, and no group one of these gids.

    The broker identifies the owner of a process by its uid; the gid has the same number, and gives it a group's rights.

    Args:
        uids: GATEWAY_UID_RANGE.
        accounts: Names and numbers of the machine's accounts and groups; None lists those of the system.
        subordinate: The files with the uids and gids that accounts may use in containers (subuid(5), subgid(5)).

    Raises:
        SettingsError: An account or group has one; the sentence names it.
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
    """Make the gateway's host key if it is missing; an existing one is never changed.

    Args:
        path: GATEWAY_HOST_KEY_PATH.

    Returns:
        Whether the key was made now.

    Raises:
        KeyFileError: Other users than root can read the key.
        SettingsError: The key cannot be made or read, or is not a file.
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
        # A container engine creates a directory if the file to mount does not exist.
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
                os.link(made, path)  # fails if another gateway was faster; its key is then used
                made.with_suffix(".pub").replace(path.with_name(path.name + ".pub"))
    except (OSError, subprocess.CalledProcessError) as exc:
        msg = f"GATEWAY_HOST_KEY_PATH {path} cannot be made ({exc}); its directory must be writable for root"
        raise SettingsError(msg) from exc
