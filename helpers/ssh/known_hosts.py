"""The remote's host keys, read from known_hosts as OpenSSH reads it.

``ssh-keygen -F`` could do the matching, but refuses to run as a uid without an account, such as the broker's; the tests
compare with it instead. Source: sshd(8), SSH_KNOWN_HOSTS FILE FORMAT; OpenSSH 9.2, hostfile.c and match.c.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path

from helpers.protocol.errors import HostKeyError

DEFAULT_SSH_PORT = 22
MAX_FILE_BYTES = 16 * 1024 * 1024
"""Largest known_hosts, in bytes, that is read: some 80,000 hashed lines, which take 0.3 s."""


_WORD = re.compile(r"[^ \t\r]+")  # blanks as in OpenSSH: str.split() splits at more characters


@dataclass(frozen=True)
class HostKeys:
    """The entries of a known_hosts file for one host.

    Attributes:
        trusted: Its accepted keys, as (type, blob).
        revoked: Blobs of its revoked keys.
        authorities: How many ``@cert-authority`` lines match it; host certificates are not supported.
    """

    trusted: tuple[tuple[str, bytes], ...] = ()
    revoked: frozenset[bytes] = frozenset()
    authorities: int = 0

    @property
    def key_types(self) -> list[str]:
        """The types of the trusted keys, in the file's order, without repetition."""
        return list(dict.fromkeys(key_type for key_type, _ in self.trusted))


def fingerprint(blob: bytes) -> str:
    """Return a key's fingerprint in OpenSSH's format: ``SHA256:`` and base64 without padding."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii").rstrip("=")


def find(content: bytes, name: str) -> HostKeys:
    """Look a host up in a known_hosts file.

    Args:
        content: The file; a malformed line is skipped.
        name: The host in the file's notation, in lower case: ``host`` or ``[host]:port``.
    """
    trusted: list[tuple[str, bytes]] = []
    revoked: set[bytes] = set()
    authorities = 0
    for line in content.decode("utf-8", "replace").split("\n"):
        words = _WORD.findall(line.partition("\0")[0])  # in OpenSSH a NUL ends the line
        if not words or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else ""
        try:
            hosts, key_type, encoded = words[:3]
            blob = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            continue
        # Python accepts more padding than OpenSSH; and a key begins with its own type (RFC 4253 section 6.6).
        whole = base64.b64encode(blob).decode("ascii") == encoded and blob[4:].startswith(key_type.encode())
        if not whole or not matches(hosts, name):
            continue
        if marker == "":
            trusted.append((key_type, blob))
        elif marker == "@revoked":
            revoked.add(blob)
        elif marker == "@cert-authority":
            authorities += 1
    return HostKeys(tuple(trusted), frozenset(revoked), authorities)


def matches(hosts: str, name: str) -> bool:
    """Check whether the first field of a line matches a host.

    Args:
        hosts: A hashed name (``|1|salt|hash``, HMAC-SHA1), or patterns with ``*`` and ``?``, separated by commas; if
            one that begins with ``!`` matches, the line does not.
        name: The host, in lower case.
    """
    if hosts.startswith("|"):
        try:
            empty, version, salt, digest = hosts.split("|")
            wanted = base64.b64decode(digest, validate=True)
            made = hmac.digest(base64.b64decode(salt, validate=True), name.encode("utf-8"), "sha1")
        except (ValueError, binascii.Error):
            return False
        return empty == "" and version == "1" and hmac.compare_digest(made, wanted)
    matched = False
    for pattern in hosts.lower().split(","):
        if _wildcard(pattern.removeprefix("!")).fullmatch(name):
            if pattern.startswith("!"):
                return False
            matched = True
    return matched


def _wildcard(pattern: str) -> re.Pattern[str]:
    special = {"*": ".*", "?": "."}
    return re.compile("".join(special.get(char) or re.escape(char) for char in re.sub(r"\*+", "*", pattern)), re.DOTALL)


class KnownHosts:
    """One known_hosts file and the remote that is looked up in it.

    Args:
        path: The file, read again whenever it has changed; a missing file is treated as empty.
        host: REMOTE_HOST, as the operator wrote it.
        port: REMOTE_PORT.
    """

    def __init__(self, path: Path, host: str, port: int) -> None:
        self.path = path
        self.host, self.port = host.lower(), port
        # The file's stamp and its entries, assigned together, since connecting threads read them.
        self._read: tuple[tuple[int, int, int] | None, HostKeys, str] = None, HostKeys(), self.name

    @property
    def name(self) -> str:
        """The remote in known_hosts' notation: ``host``, or ``[host]:port`` for another port than 22."""
        return self.host if self.port == DEFAULT_SSH_PORT else f"[{self.host}]:{self.port}"

    @property
    def known_name(self) -> str:
        """The name of the entry in use, for ssh's HostKeyAlias: `name`, or the bare host if only that is listed."""
        self.keys()
        return self._read[2]

    def keys(self) -> HostKeys:
        """Look the remote up; if there is no entry with its port, its name alone is used, as in ssh(1).

        Raises:
            HostKeyError: The file cannot be read.
        """
        try:
            stat = self.path.stat()
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            last, found, _ = self._read
            if stamp == last:
                return found
            with self.path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return HostKeys()
        except OSError as exc:
            raise self._unreadable(exc.strerror) from exc
        if len(content) > MAX_FILE_BYTES:
            raise self._unreadable(f"it is larger than {MAX_FILE_BYTES} bytes")
        found, known_name = find(content, self.name), self.name
        if not found.trusted and self.name != self.host:
            bare = find(content, self.host)
            known_name = self.host if bare.trusted else self.name
            found = HostKeys(bare.trusted, found.revoked | bare.revoked, found.authorities + bare.authorities)
        self._read = stamp, found, known_name
        return found

    def verify(self, key_type: str, blob: bytes) -> None:
        """Accept the remote's host key, or raise an error with the reason and the remedy.

        Args:
            key_type: The key's type, such as ``ssh-ed25519``.
            blob: The public key, RFC 4253 section 6.6.

        Raises:
            HostKeyError: The key is unknown, changed or revoked.
        """
        known = self.keys()
        shown = f"{key_type} {fingerprint(blob)}"
        if blob in known.revoked:
            msg = (
                f"the host key that {self.name} shows is revoked ({shown}): the connection is not safe; "
                f"see the @revoked line in {self.path} on the gateway"
            )
            raise HostKeyError(msg)
        if any(blob == trusted for _, trusted in known.trusted):
            return
        pin = f"ssh-keyscan -p {self.port} {self.host} >> {self.path}"
        if known.trusted:
            msg = (
                f"the host key of {self.name} has changed (it now shows {shown}): another machine may be in between; "
                f"if you know that the change is right, on the gateway: "
                f"ssh-keygen -R '{self.name}' -f {self.path} && {pin}"
            )
        else:
            msg = (
                f"the host key of {self.name} is not known ({shown}); compare the fingerprint with the remote's own, "
                f"then on the gateway: {pin}"
            )
            if known.authorities:
                msg += " (its @cert-authority entry is not used: host certificates are not supported)"
        raise HostKeyError(msg)

    def _unreadable(self, reason: object) -> HostKeyError:
        return HostKeyError(
            f"the gateway cannot read its known_hosts {self.path} ({reason}), so no host key can be checked; "
            f"make the file readable by everyone: chmod 0644 {self.path}, and let everyone enter its directory"
        )
