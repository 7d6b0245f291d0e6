"""Agent pass-through: how many logins on the remote are under way at once, since the users' own ssh makes them.

Anybody may come that far with any key, so that without a limit strangers could turn the gateway against the remote.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections import Counter

from helpers.errors import RemoteTimeoutError

MAX_LOGINS = 10
"""Logins under way at once: sshd's MaxStartups begins to drop unauthenticated connections at 10 (sshd_config(5))."""

MAX_FOR_ADDRESS = 5
"""How many of these for one client's address, so that one stranger leaves room for others."""

IPV6_PREFIX = 64
"""Bits by which IPv6 addresses are one: so many say whose network it is, as for sshd (60-abuse.conf)."""

WAIT_S = 12.0
"""Longest wait for a turn, in seconds: below the helpers' own patience."""


class Logins:
    """Counts the logins by the processes that watch over them, and knows by itself when one of these has ended."""

    def __init__(self) -> None:
        """Begin with none."""
        self._sources: Counter[str] = Counter()
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
        source = None if address is None else _source(address)
        try:
            async with asyncio.timeout(WAIT_S):
                while not self._has_room(source):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            msg = "the gateway is busy with other logins; try again in a moment"
            raise RemoteTimeoutError(msg) from None
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        self._held[fd] = source or ""
        self._sources[source or ""] += 1
        asyncio.get_running_loop().add_reader(fd, self._end, fd)

    def _has_room(self, source: str | None) -> bool:
        return len(self._held) < MAX_LOGINS and (source is None or self._sources[source] < MAX_FOR_ADDRESS)

    def _end(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        source = self._held.pop(fd)
        self._sources[source] -= 1
        if not self._sources[source]:
            del self._sources[source]
        self._changed.set()


def _source(address: str) -> str:
    """Name the network of an IPv6 address, of which one stranger has as many as there are bits for."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return address if ip.version == 4 else str(ipaddress.IPv6Network((int(ip), IPV6_PREFIX), strict=False))  # noqa: PLR2004
