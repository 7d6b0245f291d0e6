"""Which keys sshd may accept without asking: those that were permitted, while the file they are from is believed.

sshd reads AuthorizedKeysFile before it runs AuthorizedKeysCommand (sshd_config(5)), and so saves two starts of Python
for each login of somebody who was here a moment ago.
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
"""Users who are remembered: twice as many as have a warm connection."""

MAX_KEYS = 4
"""Keys of one user that are remembered; the one that was offered first makes room."""

MAX_LINES_BYTES = 8 * 1024
"""Longest lines of one key, in bytes, that are remembered; sshd asks about a key with longer ones each time.
All of them take 32 MiB at most."""

LONGEST_S = 600.0
"""Longest time, in seconds, for which sshd does not ask, whatever GATEWAY_CACHE_TTL: while a connection is warm."""

MARGIN_S = 2.0
"""Seconds before the end of what is believed at which sshd asks again: its lines end with a second, and later than the
file that they are in, so that it has none to complain about."""


@dataclass
class _Known:
    digest: bytes
    lines: dict[bytes, list[bytes]] = field(default_factory=dict)


class PermittedLines:
    """What was permitted to whom.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._users: LRUCache[str, _Known] = LRUCache(MAX_USERS)

    def add(self, user: str, content: bytes, offered: OfferedKey, lines: Sequence[bytes]) -> None:
        """Note that a key was permitted.

        Args:
            user: Whose it is.
            content: The authorized_keys file that says so.
            offered: The key; certificates are not remembered.
            lines: The lines that sshd was given for it; a key with more than `MAX_LINES_BYTES` is not either.
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
        """Note that a user's file was fetched again; what was permitted by another one counts no more.

        Returns:
            Whether the user's keys were remembered until now: then sshd must be told.
        """
        known = self._users.get(user)
        if known is None:
            return False
        if known.digest != _digest(content):
            del self._users[user]
        return True

    def lines(self, user: str, seconds: float) -> list[bytes]:
        """List the lines by which sshd lets a user in, each with its end.

        Args:
            user: The user.
            seconds: After how many the file goes that they are in.
        """
        known = self._users.get(user)
        if known is None or seconds <= 0:
            return []
        # sshd lets a line hold to the end of the second that it names.
        expires = datetime.fromtimestamp(self._clock(), UTC) + timedelta(seconds=seconds + MARGIN_S - 1)
        return [with_expiry(line, expires) for lines in known.lines.values() for line in lines]


def _digest(content: bytes) -> bytes:
    """Tell files apart without keeping them: at most a MiB each, and more users than the cache may have files of."""
    return hashlib.sha256(content).digest()


class SshdKeyCache:
    """Has the supervisor write the files by which sshd knows keys itself.

    Args:
        privileged: The supervisor.
        uid_of: Tells a user's uid; None where there is none.
        clock: Seconds, monotonic, as `RemoteKeys` has it.
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
        """Have a user's home made, and let sshd accept a key by itself for as long as its file is believed.

        Args:
            user: The user's name.
            uid: The user's uid.
            file: The file that permits the key.
            offered: The key.
            lines: The lines that permit it.

        Returns:
            Why the login must not go on; None where it may.
        """
        self._lines.add(user, file.content, offered, lines)
        return await self._write(user, uid, file)

    def fetched(self, user: str, file: KeyFile) -> None:
        """Let sshd go on for as long as a file that was fetched is believed, or end what it permits no more."""
        if not self._lines.renew(user, file.content):
            return
        uid = self._uid_of(user)
        if uid is not None:
            task = asyncio.ensure_future(self._write(user, uid, file))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _write(self, user: str, uid: int, file: KeyFile) -> str | None:
        seconds = min(file.believed_until_s - self._clock(), LONGEST_S) - MARGIN_S
        return await self._privileged.remember(user, uid, self._lines.lines(user, seconds), seconds)
