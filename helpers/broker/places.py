"""Which user's command runs next: how many of one user's may run at once depends on how many places are free.

The rule is that of dynamic thresholds for shared buffers (Choudhury and Hahne, "Dynamic queue length thresholds for
shared-memory packet switches", IEEE/ACM Transactions on Networking 6(2), 1998). Of 128 places, fixed shares of eight
would leave none beside 16 users who take all they can; shares of what is free leave some beside 40.
"""

from __future__ import annotations

import asyncio
from collections import Counter


class Places:
    """The places for commands. Everything here runs on the event loop's thread.

    Args:
        total: How many places there are.
        for_user: How many of them one user may take while nobody else has any.
    """

    def __init__(self, total: int, for_user: int) -> None:
        """Begin with all of them free."""
        self._total, self._for_user = total, for_user
        self._free = total
        self._held: Counter[str] = Counter()
        self._waiting: dict[asyncio.Future[None], str] = {}  # in the order in which they came

    def has_room(self, user: str) -> bool:
        """Tell whether a user may take a place now: who has many needs many to be free."""
        return self._held[user] * self._total < self._for_user * self._free

    async def take(self, user: str) -> None:
        """Wait for a place, which is held until `release`; who is cancelled meanwhile gets none."""
        if self.has_room(user) and user not in self._waiting.values():
            self._hold(user)
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = user
        try:
            await waiter
        except asyncio.CancelledError:
            if self._waiting.pop(waiter, None) is None:
                self.release(user)  # it was given in the same moment
            raise

    def release(self, user: str) -> None:
        """Give a place back."""
        self._held[user] -= 1
        if not self._held[user]:
            del self._held[user]
        self._free += 1
        for waiter, other in list(self._waiting.items()):
            if self.has_room(other):
                del self._waiting[waiter]
                self._hold(other)
                waiter.set_result(None)

    def _hold(self, user: str) -> None:
        self._held[user] += 1
        self._free -= 1
