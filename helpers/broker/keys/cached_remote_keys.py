"""A cache of the users' authorized_keys on the remote, with one fetch at a time for each user."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from cachetools import TLRUCache

from helpers.broker.keys.key_file import KeyFile
from helpers.broker.keys.refusal_timing import RefusalTiming
from helpers.broker.keys.remote_authorized_keys import MAX_OUTPUT_BYTES, AuthorizedKeys, AuthorizedKeysSources
from helpers.broker.remote.pool import CommandResult, Completed
from helpers.broker.remote.verdicts import Verdicts
from helpers.protocol.errors import GatewayError, PermissionDeniedError, RemoteLostError

CACHE_MAX_BYTES = 32 * 1024 * 1024
"""Largest total size, in bytes, of cached key files; the least recently used are evicted."""

REFRESHED_USERS = 100
"""Most users whose keys are refreshed in the background, the most recent ones. Each costs one fetch in three quarters
of a TTL."""

REFRESHED_AFTER = 0.7
"""Share of the TTL after which keys are refreshed; checked eight times a TTL, so that a failed fetch is retried."""

REFRESHED_TTL_S = 10.0
"""Smallest GATEWAY_CACHE_TTL, in seconds, with which keys are refreshed: below it fetches would never stop."""

_AT_ONCE = 4
"""Most background fetches at once: few, since logins need the pool's threads."""

KILLED_STATUSES = range(128 + 1, 128 + 64 + 1)
"""Exit statuses of a shell whose command was ended by a signal (POSIX sh; signal(7))."""


class Pool(Protocol):
    """The part of `helpers.broker.remote.pool.Connections` that is used here."""

    async def run(
        self,
        user: str,
        command: Callable[[str], str],
        *,
        max_bytes: int,
        until: Callable[[bytes], object] | None = None,
    ) -> CommandResult:
        """Run a command as a user."""
        ...

    async def run_in_background(self, user: str, command: str, *, max_bytes: int) -> Completed | None:
        """Run a command over a warm connection in the background."""

    def recent_users(self, most: int) -> list[str]:
        """List users who will probably log in again."""
        ...

    def forget(self, user: str) -> None:
        """Close a user's connection."""

    def age_s(self, user: str) -> float | None:
        """Return the age of a user's connection, in seconds."""


class RemoteKeys:
    """A cache of the users' own ``~/.ssh/authorized_keys`` on the remote.

    Args:
        pool: The connections to the remote.
        ttl_s: GATEWAY_CACHE_TTL, in seconds: how long a file, or the remote's refusal, is valid.
        own_key: The gateway's public key in base64, as it stands in a line of the file.
        sources: The locations of the users' keys on the remote.
        on_file: Called with the user and the new file after each fetch; with an empty file if the remote refuses the
            user.
        verdicts: The cache of failures of users; None for a cache of its own.
        clock: Seconds, monotonic.

    Attributes:
        refusal_timing: Records how long fetches over new connections take.
    """

    def __init__(
        self,
        pool: Pool,
        ttl_s: float,
        own_key: bytes,
        sources: AuthorizedKeysSources,
        *,
        on_file: Callable[[str, KeyFile], None] = lambda *_: None,
        verdicts: Verdicts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool, self._ttl_s, self._own_key, self._sources, self._clock = pool, ttl_s, own_key, sources, clock
        self.refusal_timing, self._on_file = RefusalTiming(clock), on_file
        self._files: TLRUCache[str, KeyFile] = TLRUCache(
            CACHE_MAX_BYTES,
            lambda _, file, __: file.valid_until_s,
            clock,
            getsizeof=lambda file: 512 + len(file.content),
        )
        self._verdicts = verdicts or Verdicts(ttl_s, clock)
        self._fetches: dict[str, asyncio.Task[KeyFile]] = {}

    async def read(self, user: str) -> KeyFile:
        """Return the cached file, or fetch it: all concurrent requests for a user share one fetch.

        Raises:
            GatewayError: The remote refuses the gateway's login as this user, or cannot be reached.
        """
        file = self._files.get(user)
        if file is not None:
            return file
        if (error := self._verdicts.error(user)) is not None:
            raise error
        return await asyncio.shield(self.fetch(user))

    def fetch(self, user: str) -> asyncio.Task[KeyFile]:
        """Start a fetch, or join the one in progress."""
        task = self._fetches.get(user)
        if task is None:
            task = asyncio.create_task(self._fetch(user))
            self._fetches[user] = task
            task.add_done_callback(lambda done: self._fetched(user, done))
        return task

    def prefetch(self, user: str) -> None:
        """Start to fetch a file that is not cached, for a login of which only the name has arrived."""
        self.refusal_timing.looked_up(user)
        if user not in self._files and self._verdicts.error(user) is None:
            self.fetch(user)

    def _fetched(self, user: str, task: asyncio.Task[KeyFile]) -> None:
        self._fetches.pop(user, None)
        if not task.cancelled():
            task.exception()  # requests that waited get it; a prefetch ignores it

    async def _fetch(self, user: str) -> KeyFile:
        age_s, began = self._pool.age_s(user), self._clock()
        command = self._sources.command_line(user)
        try:
            ran = await self._pool.run(user, lambda _: command, max_bytes=MAX_OUTPUT_BYTES)
            keys = self._parse(user, ran.completed)
            if ran.connect_ms == 0.0 and self._must_reauthenticate(keys.content, age_s):
                self._pool.forget(user)
                ran = await self._pool.run(user, lambda _: command, max_bytes=MAX_OUTPUT_BYTES)
                keys = self._parse(user, ran.completed)
        except GatewayError as error:
            self._verdicts.note(user, error)
            if isinstance(error, PermissionDeniedError):
                self._on_file(user, KeyFile(b"", "remote"))
            raise
        if ran.connect_ms > 0.0:
            self.refusal_timing.fetched(user, self._clock() - began)
        read_s = self._clock() - ran.run_ms / 1000
        file = self._store(user, KeyFile(keys.content, "remote", 0.0, read_s + self._ttl_s, keys.problems))
        return replace(file, fetch_ms=ran.connect_ms + ran.run_ms)

    def _parse(self, user: str, completed: Completed) -> AuthorizedKeys:
        """Parse the keys from the command's output.

        Raises:
            RemoteLostError: The output is incomplete.
        """
        if completed.status is None or completed.status in KILLED_STATUSES:
            raise RemoteLostError("the reading of authorized_keys was cut short on the remote host")
        return self._sources.parse(user, completed.stdout, completed.marker, completed.status)

    def _store(self, user: str, file: KeyFile) -> KeyFile:
        self._files[user] = file
        self._on_file(user, file)
        return file

    def left_s(self, file: KeyFile) -> float:
        """Return for how many more seconds a file is valid."""
        return max(0.0, file.valid_until_s - self._clock())

    async def keep_fresh(self) -> None:
        """Refresh periodically, until cancelled."""
        while self._ttl_s >= REFRESHED_TTL_S:
            await asyncio.sleep(self._ttl_s / 8)
            await self.refresh()

    async def refresh(self) -> None:
        """Fetch files that expire soon, for users who will probably log in again: their login then waits for no fetch.

        This does not change which files are valid, nor for how long after their fetch.
        """
        turns = asyncio.Semaphore(_AT_ONCE)

        async def refresh(user: str) -> None:
            async with turns:
                read_s = self._clock()
                command = self._sources.command_line(user)
                done = await self._pool.run_in_background(user, command, max_bytes=MAX_OUTPUT_BYTES)
            if done is None:
                return
            with suppress(RemoteLostError):
                keys = self._parse(user, done)
                # Without the gateway's own key in the file, only a new login shows whether the remote still accepts it.
                if self._own_key in keys.content:
                    valid_until_s = read_s + self._ttl_s
                    self._store(user, KeyFile(keys.content, "remote", 0.0, valid_until_s, keys.problems))

        now = self._clock()
        due = [
            user
            for user in self._pool.recent_users(REFRESHED_USERS)
            if (file := self._files.get(user)) is None
            or file.valid_until_s - now <= self._ttl_s * (1 - REFRESHED_AFTER)
        ]
        await asyncio.gather(*map(refresh, due))

    def _must_reauthenticate(self, content: bytes, age_s: float | None) -> bool:
        """Whether the gateway must authenticate again, since its own key is not in the file.

        If a user removes the gateway's key from authorized_keys, a connection that is still open keeps working. If the
        gateway logs in by other means (a certificate), its connection is renewed once in a TTL.
        """
        return self._own_key not in content and age_s is not None and age_s >= self._ttl_s
