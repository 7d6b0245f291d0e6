"""A limit for each holder of shared places, which falls as fewer places are free.

A holder is a user whose commands run on the remote, or the source of logins (`helpers.broker.sessions.login_limiter`).

The rule is that of dynamic thresholds for shared buffers (Choudhury and Hahne, "Dynamic queue length thresholds for
shared-memory packet switches", IEEE/ACM Transactions on Networking 6(2), 1998). With a fixed limit of eight, 16 greedy
users take all of 128 places; with dynamic thresholds some places stay free beside 40 greedy users.
"""

from __future__ import annotations

import asyncio
from collections import Counter


class FairShare:
    """A number of places. All methods run on the event loop's thread.

    Args:
        total: How many places there are.
        for_one: How many of them one holder may take while all others are free.
    """

    def __init__(self, total: int, for_one: int) -> None:
        self._total, self._for_one = total, for_one
        self._free = total
        self._held: Counter[str] = Counter()
        self._waiting: dict[asyncio.Future[None], str] = {}  # in the order of arrival

    @property
    def free(self) -> int:
        """How many places are free."""
        return self._free

    def has_room(self, holder: str) -> bool:
        """Check whether a holder may take a place now: the more it holds, the more must be free."""
        return self._held[holder] * self._total < self._for_one * self._free

    async def take(self, holder: str) -> None:
        """Wait for a place, and hold it until `release`. A cancelled waiter gets none."""
        if self.has_room(holder) and holder not in self._waiting.values():
            self._hold(holder)
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = holder
        try:
            await waiter
        except asyncio.CancelledError:
            if self._waiting.pop(waiter, None) is None:
                self.release(holder)  # the place was given to it just before it was cancelled
            raise

    def release(self, holder: str) -> None:
        """Give a place back."""
        self._held[holder] -= 1
        if not self._held[holder]:
            del self._held[holder]
        self._free += 1
        for waiter, other in list(self._waiting.items()):
            if self.has_room(other):
                del self._waiting[waiter]
                self._hold(other)
                waiter.set_result(None)

    def _hold(self, holder: str) -> None:
        self._held[holder] += 1
        self._free -= 1
