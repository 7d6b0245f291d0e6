"""Users that exist on the remote alone, and key pairs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# What sshd, mosh-server and ps expect to find, as on Debian.
_SYSTEM_PASSWD = (
    "root:x:0:0:root:/root:/bin/bash",
    "sshd:x:105:65534::/run/sshd:/usr/sbin/nologin",
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin",
)
_SYSTEM_GROUPS = ("root:x:0:", "tty:x:5:", "utmp:x:43:", "nogroup:x:65534:")

FIRST_UID = 2000
# Users other than root whose ids Debian fixes (base-passwd).
_FIXED_UIDS = {"www-data": 33}


@dataclass(frozen=True)
class KeyPair:
    """An SSH key pair.

    Attributes:
        private: The private key's file, without passphrase, readable by root alone.
        public: The public key as a line of authorized_keys, without newline.
    """

    private: Path
    public: str


@dataclass(frozen=True)
class User:
    """Somebody on the remote.

    Attributes:
        name: Login name.
        uid: User and group id there.
        home: Home directory there.
        key: The key pair that the user's client offers.
    """

    name: str
    uid: int
    home: str
    key: KeyPair

    @property
    def prompt(self) -> str:
        """What bash shows in the home directory on the remote, without the blank at the end."""
        return f"{self.name}@remote:~{'#' if self.uid == 0 else '$'}"


def make_key(path: Path, *, kind: str = "ed25519") -> KeyPair:
    """Make a key pair in a file that does not exist yet, of a type as ``ssh-keygen -t`` names it."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", path.name, "-f", str(path)],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    return KeyPair(path, path.with_name(path.name + ".pub").read_text().strip())


class UserDatabase:
    """The files that stand in for the remote's /etc/passwd and its kin.

    They are bind-mounted one by one, and read by whoever logs in meanwhile: so they are changed in place, and but for
    `expire` only grow.

    Args:
        directory: Where the files are made; it must not exist.
        hosts: Lines of /etc/hosts.
    """

    FILES = ("passwd", "shadow", "group", "nsswitch.conf", "motd", "hosts")

    def __init__(self, directory: Path, *, hosts: Iterable[str]) -> None:
        """Write the files, with nobody in them but the system's own."""
        self._directory = directory
        self._names = {"root"}
        directory.mkdir()
        for file in self.FILES:
            (directory / file).touch(0o600 if file == "shadow" else 0o644)
        self._append("nsswitch.conf", "passwd: files", "group: files", "shadow: files", "hosts: files")
        self._append("hosts", *hosts)
        self._append("passwd", *_SYSTEM_PASSWD)
        self._append("group", *_SYSTEM_GROUPS)
        self._append("shadow", *(_shadow(line.split(":", 1)[0]) for line in _SYSTEM_PASSWD))

    def add(self, name: str, *, shell: str = "/bin/bash") -> tuple[int, str]:
        """Add a user and return user id and home directory; ``root`` is there already."""
        if name == "root":
            return 0, "/root"
        if name in self._names:
            message = f"the remote has a user {name} already"
            raise ValueError(message)
        uid = _FIXED_UIDS.get(name, FIRST_UID + len(self._names))
        self._names.add(name)
        home = f"/home/{name}"
        self._append("group", f"{name}:x:{uid}:")
        self._append("shadow", _shadow(name))
        self._append("passwd", f"{name}:x:{uid}:{uid}::{home}:{shell}")
        return uid, home

    def expire(self, names: Iterable[str]) -> None:
        """Let accounts expire on the second day of 1970."""
        shadow = self._directory / "shadow"
        lines = shadow.read_text().splitlines()
        lines = [line.removesuffix("::") + ":1:" if line.split(":", 1)[0] in names else line for line in lines]
        shadow.write_text("".join(f"{line}\n" for line in lines))

    def _append(self, file: str, *lines: str) -> None:
        """Add lines to a file."""
        with (self._directory / file).open("a") as stream:
            stream.write("".join(f"{line}\n" for line in lines))


def _shadow(name: str) -> str:
    """Return a line of shadow(5): "*" matches no password and, unlike "!", does not mean that it is locked."""
    return f"{name}:*:19000:0:99999:7:::"
