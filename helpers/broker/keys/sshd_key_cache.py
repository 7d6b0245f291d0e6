"""Keys that sshd accepts from its own file: those that were permitted, while the user's authorized_keys is valid.

sshd reads AuthorizedKeysFile before it runs AuthorizedKeysCommand (sshd_config(5)). The next login of the same user
then saves two starts of Python.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cachetools import LRUCache

from helpers.broker.keys.key_file import KeyFile
from helpers.broker.privileged_client import PrivilegedClient
from helpers.ssh.authorized_keys import OfferedKey, with_expiry

MAX_USERS = 1024
"""Most users whose keys are cached: twice as many as have a warm connection."""

MAX_KEYS = 4
"""Most cached keys of one user; the one that was offered first is evicted."""

MAX_LINES_BYTES = 8 * 1024
"""Largest size of one key's lines, in bytes, that is cached; sshd asks each time about a key with more.
The whole cache takes 32 MiB at most."""

LONGEST_S = 600.0
"""Longest time, in seconds, for which sshd may cache lines, even with a longer GATEWAY_CACHE_TTL: the lifetime of an
idle warm connection."""

MARGIN_S = 2.0
"""Seconds before the expiry of the user's authorized_keys at which sshd's file is removed. sshd's lines expire at a
full second, after the removal of their file, so that sshd logs no expired line."""


@dataclass
class _Known:
    digest: bytes
    lines: dict[bytes, list[bytes]] = field(default_factory=dict)


class PermittedLines:
    """The permitted keys of each user, with their lines.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._users: LRUCache[str, _Known] = LRUCache(MAX_USERS)

    def add(self, user: str, content: bytes, offered: OfferedKey, lines: Sequence[bytes]) -> None:
        """Record that a key was permitted.

        Args:
            user: The key's user.
            content: The authorized_keys file that permits it.
            offered: The key; certificates are not cached.
            lines: The lines that sshd was given for it; more than `MAX_LINES_BYTES` are not cached.
        """
        self.renew(user, content)
        if offered.certificate is not None or sum(map(len, lines)) > MAX_LINES_BYTES:
            return
        known = self._users.setdefault(user, _Known(_digest(content)))
        known.lines.pop(offered.blob, None)
        known.lines[offered.blob] = list(lines)
        if len(known.lines) > MAX_KEYS:
            del known.lines[next(iter(known.lines))]

    def renew(self, user: str, content: bytes) -> bool:
        """Record that a user's file was fetched again, and drop keys that a different file permitted.

        Returns:
            Whether the user had cached keys: then sshd's file must be written again.
        """
        known = self._users.get(user)
        if known is None:
            return False
        if known.digest != _digest(content):
            del self._users[user]
        return True

    def forget(self, user: str) -> None:
        """Forget a user's lines."""
        self._users.pop(user, None)

    def lines(self, user: str, seconds: float) -> list[bytes]:
        """List the lines that permit a user's keys, each with its expiry time.

        Args:
            user: The user.
            seconds: After how many seconds their file is removed.
        """
        known = self._users.get(user)
        if known is None or seconds <= 0:
            return []
        # In sshd a line is valid until the end of the second in its expiry-time.
        expires = datetime.fromtimestamp(self._clock(), UTC) + timedelta(seconds=seconds + MARGIN_S - 1)
        return [with_expiry(line, expires) for lines in known.lines.values() for line in lines]


def _digest(content: bytes) -> bytes:
    """Hash a file for comparison: the files of `MAX_USERS` users, up to a MiB each, would take too much memory."""
    return hashlib.sha256(content).digest()


class SshdKeyCache:
    """Has the supervisor write the files from which sshd accepts keys without asking the broker.

    Args:
        privileged: The client of the supervisor's privileged server.
        uid_of: Returns a user's uid; None if there is none.
        clock: Seconds, monotonic, the same clock as that of `RemoteKeys`.
    """

    def __init__(
        self,
        privileged: PrivilegedClient,
        uid_of: Callable[[str], int | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._privileged, self._uid_of, self._clock = privileged, uid_of, clock
        self._lines = PermittedLines()
        self._tasks: set[asyncio.Task[str | None]] = set()

    async def add(self, user: str, uid: int, file: KeyFile, offered: OfferedKey, lines: Sequence[bytes]) -> str | None:
        """Have a user's home made, and let sshd cache a key's lines for as long as the user's file is valid.

        Args:
            user: The user's name.
            uid: The user's uid.
            file: The file that permits the key.
            offered: The key.
            lines: The lines that permit it.

        Returns:
            Why the login must not go on; None if it may.
        """
        self._lines.add(user, file.content, offered, lines)
        return await self._write(user, uid, file)

    def fetched(self, user: str, file: KeyFile) -> None:
        """Extend the lifetime of sshd's file after a fetch, or remove it if the user's authorized_keys has changed."""
        if not self._lines.renew(user, file.content):
            return
        uid = self._uid_of(user)
        if uid is not None:
            task = asyncio.ensure_future(self._write(user, uid, file))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def forget(self, user: str) -> None:
        """Remove sshd's file for a user, and the lines that it was made of."""
        self._lines.forget(user)
        uid = self._uid_of(user)
        if uid is not None:
            await self._privileged.remember(user, uid, [], 0.0)

    async def _write(self, user: str, uid: int, file: KeyFile) -> str | None:
        seconds = min(file.valid_until_s - self._clock(), LONGEST_S) - MARGIN_S
        return await self._privileged.remember(user, uid, self._lines.lines(user, seconds), seconds)
