"""How long a refusal takes, so that its time tells a stranger nothing about a user name.

A name that the remote does not know is refused after fewer round trips than one whose authorized_keys are read, and
what is remembered, or asked over a warm connection, sooner than either. So every refusal waits until a fetch over a
new connection would have ended.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from cachetools import TTLCache

SAMPLES = 16
"""Fetches over new connections that are looked back on: the slowest of them is what a refusal takes."""

MAX_S = 5.0
"""Longest time, in seconds, to which a refusal is stretched; one stalled fetch must not slow all others."""

FAMILIAR_S = 86_400.0
"""Seconds since a user's last session from an address for which refusals there are not stretched: most agents offer a
few wrong keys first, and whoever shares the address with the user knows more than that the name exists."""

MAX_NAMES = 20_000
"""Most names that are remembered, with up to 400 bytes each (measured)."""

LOOKUP_S = 60.0
"""Seconds for which a lookup is remembered: above LoginGraceTime (30 s)."""


class Pacing:
    """Remembers how long fetches take, and when each login began.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing remembered, and no refusal stretched before the first fetch."""
        self._clock = clock
        self._fetches_s: deque[float] = deque(maxlen=SAMPLES)
        self._lookups: TTLCache[str, float] = TTLCache(MAX_NAMES, LOOKUP_S, clock)
        self._familiar: TTLCache[tuple[str, str], bool] = TTLCache(MAX_NAMES, FAMILIAR_S, clock)

    def looked_up(self, user: str) -> None:
        """Note that a login as this user began."""
        self._lookups[user] = self._clock()

    def fetched(self, seconds: float) -> None:
        """Note how long a fetch over a new connection took."""
        self._fetches_s.append(min(seconds, MAX_S))

    def logged_in(self, user: str, address: str) -> None:
        """Note that a user has a session from an address."""
        self._familiar[user, address] = True

    def left_s(self, user: str, address: str | None) -> float:
        """Tell how many seconds a refusal has to wait.

        Args:
            user: Who is refused.
            address: The client's address; None where sshd does not tell.
        """
        if not self._fetches_s or (user, address) in self._familiar:
            return 0.0
        now = self._clock()
        return max(0.0, self._lookups.get(user, now) + max(self._fetches_s) - now)
