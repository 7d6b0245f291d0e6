"""How long a refusal takes, so that its time tells a stranger nothing about a user name.

A name that the remote does not know is refused after fewer round trips than one whose authorized_keys are read, and
what is remembered, or asked over a warm connection, sooner than either. So every refusal waits until a fetch over a
new connection would have ended.

One account whose shell is slow on purpose must not make all others wait, so a fetch counts for no more than `OUTLIER`
times the median. That account's own refusals then take longer than others', and so tell that it exists.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from cachetools import TTLCache

SAMPLES = 16
"""Users whose last fetch over a new connection is looked back on: the slowest of them is what a refusal takes."""

OUTLIER = 2.0
"""Times the median that a refusal takes at most: fewer than half of these users cannot make it longer. sshd itself
rounds to powers of two (auth2.c, ensure_minimum_time_since): less would hide fewer names and save little."""

MAX_S = 5.0
"""Longest time, in seconds, to which a refusal is stretched."""

MAX_NAMES = 20_000
"""Most names that are remembered, with up to 400 bytes each (measured)."""

LOOKUP_S = 60.0
"""Seconds for which a lookup is remembered: above LoginGraceTime (45 s)."""


class RefusalTiming:
    """Remembers how long fetches take, and when each login began.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing remembered, and no refusal stretched before the first fetch."""
        self._clock = clock
        self._fetches_s: dict[str, float] = {}  # the users in the order of their last fetch
        self._lookups: TTLCache[str, float] = TTLCache(MAX_NAMES, LOOKUP_S, clock)

    def looked_up(self, user: str) -> None:
        """Note that a login as this user began."""
        self._lookups[user] = self._clock()

    def fetched(self, user: str, seconds: float) -> None:
        """Note how long a fetch of a user's keys over a new connection took."""
        self._fetches_s.pop(user, None)
        if len(self._fetches_s) == SAMPLES:
            del self._fetches_s[next(iter(self._fetches_s))]
        self._fetches_s[user] = seconds

    def left_s(self, user: str) -> float:
        """Tell how many seconds the refusal of a user has to wait."""
        if not self._fetches_s:
            return 0.0
        now = self._clock()
        return max(0.0, self._lookups.get(user, now) + self._pace_s() - now)

    def _pace_s(self) -> float:
        times_s = self._fetches_s.values()
        return min(MAX_S, max(times_s), OUTLIER * statistics.median_low(times_s))
