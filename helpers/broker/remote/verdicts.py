"""What the remote has said of users whom it did not let in: one memory for keys, sessions and connections."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from helpers.protocol.errors import GatewayError, PermissionDeniedError

MAX_VERDICTS = 20_000
"""Most names of which a failure is remembered, about 300 bytes each: invented names push out one another, and never the
keys of users."""

OUTAGE_TTL_S = 5.0
"""Seconds for which a remote that could not be reached is not asked again for the same user: short, since a failure of
the network is no verdict on the user."""


@dataclass(frozen=True)
class _Verdict:
    until_s: float
    kind: type[GatewayError]
    message: str


class Verdicts:
    """The last failure of each user.

    An error is remembered by its kind and message: its traceback would hold a dead connection in memory.

    Args:
        ttl_s: GATEWAY_CACHE_TTL, in seconds: for so long a user whom the remote has refused is not tried again.
        clock: Seconds, monotonic.
    """

    def __init__(self, ttl_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl_s, self._clock = ttl_s, clock
        self._verdicts: dict[str, _Verdict] = {}  # the oldest first

    def note(self, user: str, error: GatewayError) -> None:
        """Remember a failure: a refusal for the TTL, everything else for `OUTAGE_TTL_S` at most."""
        ttl_s = self._ttl_s if isinstance(error, PermissionDeniedError) else min(self._ttl_s, OUTAGE_TTL_S)
        self._verdicts.pop(user, None)
        if len(self._verdicts) >= MAX_VERDICTS:
            del self._verdicts[next(iter(self._verdicts))]
        self._verdicts[user] = _Verdict(self._clock() + ttl_s, type(error), error.message)

    def clear(self, user: str) -> None:
        """Forget a user's failure: the remote has let the gateway in as this user."""
        self._verdicts.pop(user, None)

    def error(self, user: str) -> GatewayError | None:
        """Return a user's failure as a new error; None where there is none, or it is too old."""
        verdict = self._verdicts.get(user)
        if verdict is None or self._clock() >= verdict.until_s:
            return None
        return verdict.kind(verdict.message)

    def check_refusal(self, user: str) -> None:
        """Spare the remote a try at a user whom it has refused within the TTL.

        Raises:
            PermissionDeniedError: It has.
        """
        error = self.error(user)
        if isinstance(error, PermissionDeniedError):
            raise error
