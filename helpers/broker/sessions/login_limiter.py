"""Agent pass-through: limits for logins on the remote that the users' own ssh makes.

A stranger with any key gets as far as such a login. Without a limit strangers could flood the remote through the
gateway; with a single limit for all they could keep users out.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

from helpers.broker.fair_share import FairShare
from helpers.broker.peer_credentials import end_of
from helpers.protocol.client_source import parse_address, source_of_address
from helpers.protocol.deadlines import TURN_WAIT_S
from helpers.protocol.errors import RemoteTimeoutError

MAX_LOGINS = 10
"""Logins under way at once: sshd's MaxStartups begins to drop unauthenticated connections at 10 (sshd_config(5))."""

MAX_STRANGERS = 7
"""How many of these may be strangers'; the rest is for users who have logged in before."""

MAX_FOR_SOURCE = 5
"""How many turns of either kind one source may have while all others are free; fewer while many are taken
(`helpers.broker.fair_share`)."""

MAX_WAITING, MAX_WAITING_FOR_SOURCE = 100, 20
"""Most logins of strangers that may wait for a turn, in total and from one source: each waits in a process. Further
ones are refused."""

LOGIN_S = 60.0
"""Longest time, in seconds, that a login may take: some agents prompt the user, or wait for a touch of the key. A
stranger gets all of it while no other has a turn, and less as fewer turns are free."""

_BUSY = "the gateway is busy with other logins; try again in a moment"


class LoginLimiter:
    """Gives turns to processes that watch logins; a turn ends with its process."""

    def __init__(self) -> None:
        self._turns, self._strangers = FairShare(MAX_LOGINS, MAX_FOR_SOURCE), FairShare(MAX_STRANGERS, MAX_FOR_SOURCE)
        self._waiting: Counter[str] = Counter()
        self._held: set[asyncio.Task[None]] = set()

    async def take_turn(self, pid: int, source: str, *, known: bool) -> float:
        """Wait for a turn.

        Args:
            pid: The process that holds the turn until it ends.
            source: The source of the login, see `source_of`.
            known: Whether the user has logged in before, with the same key or from the same address.

        Returns:
            How many seconds the login may take.

        Raises:
            RemoteTimeoutError: The turn does not come in time, or too many logins wait.
            OSError: There is no such process.
        """
        async with AsyncExitStack() as stack:
            ended = await stack.enter_async_context(end_of(pid))
            if known:
                await self._take(stack, source, self._turns)
            elif self._waiting[source] >= MAX_WAITING_FOR_SOURCE or self._waiting.total() >= MAX_WAITING:
                raise RemoteTimeoutError(_BUSY)
            else:
                self._waiting[source] += 1
                try:
                    await self._take(stack, source, self._strangers, self._turns)
                finally:
                    self._waiting[source] -= 1
                    self._waiting += Counter()  # drops entries that are zero
            task = asyncio.create_task(_hold(ended, stack.pop_all()))
            self._held.add(task)
            task.add_done_callback(self._held.discard)
        return LOGIN_S if known else LOGIN_S * (self._strangers.free + 1) / MAX_STRANGERS

    @staticmethod
    async def _take(stack: AsyncExitStack, source: str, *turns: FairShare) -> None:
        try:
            async with asyncio.timeout(TURN_WAIT_S):
                for places in turns:
                    await places.take(source)
                    stack.callback(places.release, source)
        except TimeoutError:
            raise RemoteTimeoutError(_BUSY) from None


async def _hold(ended: asyncio.Event, turn: AsyncExitStack) -> None:
    async with turn:
        await ended.wait()


def source_of(address: str | None, user: str) -> str:
    """Return the source that a login counts for.

    Args:
        address: The client's address; None if it is a proxy's, which clients share, or the key identifies the user.
        user: The user's name, the source if there is no address.

    Returns:
        The IPv4 address; the network of an IPv6 address, in which one stranger has 2**64 addresses; or the user.
    """
    if address is None:
        return f"user {user}"
    return source_of_address(parse_address(address))
