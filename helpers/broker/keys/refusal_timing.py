"""Equal delays for refusals, so that their timing does not reveal which user names exist.

The remote refuses an unknown name after fewer round trips than a fetch of authorized_keys takes; an answer from the
cache, or over a warm connection, is faster than both. So every refusal is delayed until a fetch over a new connection
would have ended.

One account whose shell is slow on purpose must not delay all others' refusals, so a fetch counts for at most `OUTLIER`
times the median. That account's own refusals then take longer than others', which reveals that it exists.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from cachetools import TTLCache

SAMPLES = 16
"""Most recent users whose last fetch over a new connection is recorded: a refusal takes as long as the slowest."""

OUTLIER = 2.0
"""Longest delay of a refusal, as a multiple of the median: fewer than half of these users cannot extend it. sshd
itself rounds up to powers of two (auth2.c, ensure_minimum_time_since): a smaller factor would hide fewer names and
save little."""

MAX_S = 5.0
"""Longest time, in seconds, to which a refusal is delayed."""

MAX_NAMES = 20_000
"""Most names that are remembered, up to 400 bytes each (measured)."""

LOOKUP_S = 60.0
"""Seconds for which a lookup is remembered: above LoginGraceTime (45 s)."""


class RefusalTiming:
    """Records how long fetches take, and when each login began. Before the first fetch no refusal is delayed.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._fetches_s: dict[str, float] = {}  # the users in the order of their last fetch
        self._lookups: TTLCache[str, float] = TTLCache(MAX_NAMES, LOOKUP_S, clock)

    def looked_up(self, user: str) -> None:
        """Record that a login as this user began."""
        self._lookups[user] = self._clock()

    def fetched(self, user: str, seconds: float) -> None:
        """Record how long a fetch of a user's keys over a new connection took."""
        self._fetches_s.pop(user, None)
        if len(self._fetches_s) == SAMPLES:
            del self._fetches_s[next(iter(self._fetches_s))]
        self._fetches_s[user] = seconds

    def left_s(self, user: str) -> float:
        """Return for how many seconds the refusal of a user must be delayed."""
        if not self._fetches_s:
            return 0.0
        now = self._clock()
        return max(0.0, self._lookups.get(user, now) + self._delay_s() - now)

    def _delay_s(self) -> float:
        times_s = self._fetches_s.values()
        return min(MAX_S, max(times_s), OUTLIER * statistics.median_low(times_s))
