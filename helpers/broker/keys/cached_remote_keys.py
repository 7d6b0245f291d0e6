"""The user's own authorized_keys on the remote: fetched once for all who ask, and believed for a while."""

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
from helpers.broker.remote.pool import Completed, Ran
from helpers.broker.remote.verdicts import Verdicts
from helpers.protocol.errors import GatewayError, PermissionDeniedError, RemoteLostError

CACHE_MAX_BYTES = 32 * 1024 * 1024
"""Most key files, in bytes, that are remembered; the ones not used for longest are forgotten."""

REFRESHED_USERS = 100
"""For how many users keys are kept fresh at most: those who were here last. Each costs a fetch in three quarters
of a TTL."""

REFRESHED_AFTER = 0.7
"""Share of the TTL after which they are fetched anew; looked at eight times a TTL, so that a failure is tried again."""

REFRESHED_TTL_S = 10.0
"""Smallest GATEWAY_CACHE_TTL, in seconds, with which they are: below it the remote would be asked all the time."""

_AT_ONCE = 4
"""Fetches at once that nobody waits for: few beside the pool's threads, which logins need."""

KILLED_STATUSES = range(128 + 1, 128 + 64 + 1)
"""Exit statuses by which a shell says that a signal ended what it waited for (POSIX sh; signal(7))."""


class Pool(Protocol):
    """What is needed of `helpers.broker.remote.pool.Connections`."""

    async def run(
        self,
        user: str,
        command: Callable[[str], str],
        *,
        max_bytes: int,
        until: Callable[[bytes], object] | None = None,
    ) -> Ran:
        """Run a command as a user."""
        ...

    async def run_unused(self, user: str, command: str, *, max_bytes: int) -> Completed | None:
        """Run a command over a warm connection on the gateway's own behalf."""

    def expected(self, most: int) -> list[str]:
        """List the users who will probably be back."""
        ...

    def forget(self, user: str) -> None:
        """Close a user's connection."""

    def age_s(self, user: str) -> float | None:
        """Tell how old it is."""


class RemoteKeys:
    """The user's own ``~/.ssh/authorized_keys`` on the remote, remembered for a while.

    Args:
        pool: The connections to the remote.
        ttl_s: GATEWAY_CACHE_TTL, in seconds: for so long a file, or the remote's refusal, is believed.
        own_key: The gateway's public key in base64, as a line of the file would hold it.
        sources: Where the remote has its users' keys.
        on_file: Called when a user's file was fetched, with the user and what is believed now: an empty file for a user
            whom the remote refuses.
        verdicts: What is remembered of users whom the remote did not let in; None for a memory of its own.
        clock: Seconds, monotonic.

    Attributes:
        refusal_timing: Hears how long fetches over new connections take.
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
            lambda _, file, __: file.believed_until_s,
            clock,
            getsizeof=lambda file: 512 + len(file.content),
        )
        self._verdicts = verdicts or Verdicts(ttl_s, clock)
        self._fetches: dict[str, asyncio.Task[KeyFile]] = {}

    async def read(self, user: str) -> KeyFile:
        """Answer from memory, or fetch: one fetch at a time for a user, whose askers all get its answer.

        Raises:
            GatewayError: The remote lets the gateway in as no such user, or cannot be reached.
        """
        file = self._files.get(user)
        if file is not None:
            return file
        if (error := self._verdicts.error(user)) is not None:
            raise error
        return await asyncio.shield(self.fetch(user))

    def fetch(self, user: str) -> asyncio.Task[KeyFile]:
        """Start to fetch, or join the fetch that is under way."""
        task = self._fetches.get(user)
        if task is None:
            task = asyncio.create_task(self._fetch(user))
            self._fetches[user] = task
            task.add_done_callback(lambda done: self._fetched(user, done))
        return task

    def prefetch(self, user: str) -> None:
        """Start to fetch what is not remembered, for a login that has only told its name so far."""
        self.refusal_timing.looked_up(user)
        if user not in self._files and self._verdicts.error(user) is None:
            self.fetch(user)

    def _fetched(self, user: str, task: asyncio.Task[KeyFile]) -> None:
        self._fetches.pop(user, None)
        if not task.cancelled():
            task.exception()  # whoever waited has it; a prefetch has nobody to tell

    async def _fetch(self, user: str) -> KeyFile:
        age_s, began = self._pool.age_s(user), self._clock()
        command = self._sources.command_line(user)
        try:
            ran = await self._pool.run(user, lambda _: command, max_bytes=MAX_OUTPUT_BYTES)
            keys = self._parse(user, ran.completed)
            if ran.connect_ms == 0.0 and self._must_prove_anew(keys.content, age_s):
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
        file = self._believe(user, KeyFile(keys.content, "remote", 0.0, read_s + self._ttl_s, keys.problems))
        return replace(file, fetch_ms=ran.connect_ms + ran.run_ms)

    def _parse(self, user: str, completed: Completed) -> AuthorizedKeys:
        """Take the keys from what the remote said.

        Raises:
            RemoteLostError: It was cut short.
        """
        if completed.status is None or completed.status in KILLED_STATUSES:
            raise RemoteLostError("the reading of authorized_keys was cut short on the remote host")
        return self._sources.parse(user, completed.stdout, completed.marker, completed.status)

    def _believe(self, user: str, file: KeyFile) -> KeyFile:
        self._files[user] = file
        self._on_file(user, file)
        return file

    def left_s(self, file: KeyFile) -> float:
        """Tell for how many seconds a file is believed yet."""
        return max(0.0, file.believed_until_s - self._clock())

    async def keep_fresh(self) -> None:
        """Refresh every now and then, until cancelled."""
        while self._ttl_s >= REFRESHED_TTL_S:
            await asyncio.sleep(self._ttl_s / 8)
            await self.refresh()

    async def refresh(self) -> None:
        """Fetch what will be forgotten soon, for users who will probably be back: their login then waits for no fetch.

        It changes nothing in what is believed, and for how long.
        """
        turns = asyncio.Semaphore(_AT_ONCE)

        async def refresh(user: str) -> None:
            async with turns:
                read_s = self._clock()
                command = self._sources.command_line(user)
                done = await self._pool.run_unused(user, command, max_bytes=MAX_OUTPUT_BYTES)
            if done is None:
                return
            with suppress(RemoteLostError):
                keys = self._parse(user, done)
                # Without the gateway's own key, whether the gateway may still be there is a login's to find out.
                if self._own_key in keys.content:
                    believed_until_s = read_s + self._ttl_s
                    self._believe(user, KeyFile(keys.content, "remote", 0.0, believed_until_s, keys.problems))

        now = self._clock()
        due = [
            user
            for user in self._pool.expected(REFRESHED_USERS)
            if (file := self._files.get(user)) is None
            or file.believed_until_s - now <= self._ttl_s * (1 - REFRESHED_AFTER)
        ]
        await asyncio.gather(*map(refresh, due))

    def _must_prove_anew(self, content: bytes, age_s: float | None) -> bool:
        """Whether a warm connection outlived the gateway's own permission to be there.

        A user who takes the gateway's key out of authorized_keys wants it out; the connection that is still open
        would not notice. One whose permission comes from elsewhere (a certificate) is renewed once in a TTL.
        """
        return self._own_key not in content and age_s is not None and age_s >= self._ttl_s
