"""Agent pass-through: how many logins on the remote are under way at once, since the users' own ssh makes them.

Anybody may come that far with any key, so that without a limit strangers could turn the gateway against the remote.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter

from helpers.errors import RemoteTimeoutError

MAX_LOGINS = 10
"""Logins under way at once: sshd's MaxStartups begins to drop unauthenticated connections at 10 (sshd_config(5))."""

MAX_FOR_ADDRESS = 5
"""How many of these for one client's address, so that one stranger leaves room for others."""

WAIT_S = 12.0
"""Longest wait for a turn, in seconds: below the helpers' own patience."""


class Logins:
    """Counts the logins by the processes that watch over them, and knows by itself when one of these has ended."""

    def __init__(self) -> None:
        """Begin with none."""
        self._addresses: Counter[str] = Counter()
        self._held: dict[int, str] = {}
        self._changed = asyncio.Event()

    async def take_turn(self, pid: int, address: str | None) -> None:
        """Wait for a turn, which lasts for as long as a process.

        Args:
            pid: The process.
            address: The client's; None counts against no limit but the one for all.

        Raises:
            RemoteTimeoutError: It does not come in time.
        """
        try:
            async with asyncio.timeout(WAIT_S):
                while not self._has_room(address):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            msg = "the gateway is busy with other logins; try again in a moment"
            raise RemoteTimeoutError(msg) from None
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        self._held[fd] = address or ""
        self._addresses[address or ""] += 1
        asyncio.get_running_loop().add_reader(fd, self._end, fd)

    def _has_room(self, address: str | None) -> bool:
        return len(self._held) < MAX_LOGINS and (address is None or self._addresses[address] < MAX_FOR_ADDRESS)

    def _end(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        self._addresses.subtract([self._held.pop(fd)])
        self._changed.set()
