"""Users that the remote has accepted, with the addresses and keys of their clients."""

from __future__ import annotations

import time
from collections.abc import Callable

from cachetools import TTLCache

KNOWN_CLIENT_TTL_S = 86_400.0
"""Seconds for which a user's login is remembered."""

MAX_LOGINS = 20_000
"""Most pairs that are remembered, up to 400 bytes each (measured)."""


class KnownClients:
    """Remembers logins that the remote accepted, by address and key: a client can claim any name.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._logins: TTLCache[tuple[str, str], bool] = TTLCache(MAX_LOGINS, KNOWN_CLIENT_TTL_S, clock)

    def note(self, user: str, *marks: str | None) -> None:
        """Remember a login.

        Args:
            user: The user's name.
            marks: The client's address, and the fingerprint of the key; None for one that is unknown.
        """
        for mark in marks:
            if mark is not None:
                self._logins[user, mark] = True

    def knows(self, user: str, *marks: str | None) -> bool:
        """Check whether the remote has accepted the user from this address, or with this key."""
        return any((user, mark) in self._logins for mark in marks if mark is not None)
