"""A cache of the remote's refusals and of failures to reach it, for keys, sessions and connections."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from helpers.protocol.errors import GatewayError, PermissionDeniedError

MAX_VERDICTS = 20_000
"""Most names whose failure is cached, about 300 bytes each: invented names evict one another, never the keys of
users."""

OUTAGE_TTL_S = 5.0
"""Seconds for which a failure to reach the remote is cached for a user: short, since a network failure does not mean
that the user is refused."""


@dataclass(frozen=True)
class _Verdict:
    until_s: float
    kind: type[GatewayError]
    message: str


class Verdicts:
    """The last failure of each user.

    An error is stored as its class and message: its traceback would keep a dead connection in memory.

    Args:
        ttl_s: GATEWAY_CACHE_TTL, in seconds: a user whom the remote has refused is not tried again for so long.
        clock: Seconds, monotonic.
    """

    def __init__(self, ttl_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl_s, self._clock = ttl_s, clock
        self._verdicts: dict[str, _Verdict] = {}  # the oldest first

    def note(self, user: str, error: GatewayError) -> None:
        """Store a failure: a refusal for the TTL, any other for `OUTAGE_TTL_S` at most."""
        ttl_s = self._ttl_s if isinstance(error, PermissionDeniedError) else min(self._ttl_s, OUTAGE_TTL_S)
        self._verdicts.pop(user, None)
        if len(self._verdicts) >= MAX_VERDICTS:
            del self._verdicts[next(iter(self._verdicts))]
        self._verdicts[user] = _Verdict(self._clock() + ttl_s, type(error), error.message)

    def clear(self, user: str) -> None:
        """Remove a user's failure: the remote has accepted the gateway's login as this user."""
        self._verdicts.pop(user, None)

    def error(self, user: str) -> GatewayError | None:
        """Return a user's failure as a new error; None if there is none, or it has expired."""
        verdict = self._verdicts.get(user)
        if verdict is None or self._clock() >= verdict.until_s:
            return None
        return verdict.kind(verdict.message)

    def check_refusal(self, user: str) -> None:
        """Fail if the remote has refused a user within the TTL.

        Raises:
            PermissionDeniedError: It has refused the user.
        """
        error = self.error(user)
        if isinstance(error, PermissionDeniedError):
            raise error
