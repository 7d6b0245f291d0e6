"""A circuit breaker: while the remote is down, logins fail at once instead of each trying to connect."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from helpers.protocol.errors import GatewayError

FAILURES = 3
"""Consecutive network failures after which connections are no longer tried: a single one may be chance."""

PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Seconds without a try, after each further failure; the last one repeats. Logins work at most half a minute after
the remote is back."""

JITTER = 0.5
"""Each pause is longer or shorter by up to this share of it, so that gateways do not all reconnect at once."""


class CircuitBreaker:
    """Counts the failures of recent connections.

    Args:
        clock: Seconds, monotonic.
        spread: Returns a number from -1 to 1, for the jitter.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311 - guessing it gains nothing
    ) -> None:
        self._clock, self._spread = clock, spread
        self._failures = 0
        self._until_s = 0.0
        self._error: GatewayError | None = None

    def check(self) -> None:
        """Fail if no connection may be tried now.

        Raises:
            GatewayError: The last failure again, during a pause.
        """
        if self._error is not None and self._is_paused:
            raise type(self._error)(self._error.message)

    def failed(self, error: GatewayError) -> None:
        """Record that the remote could not be reached.

        An attempt that fails during a pause began before it, and does not count: ten logins that meet a short outage
        cause the same pause as one.
        """
        if self._is_paused:
            return
        self._failures += 1
        self._error = type(error)(error.message)
        pause_s = PAUSES_S[min(max(0, self._failures - FAILURES), len(PAUSES_S) - 1)]
        self._until_s = self._clock() + pause_s * (1 + JITTER * self._spread())

    @property
    def _is_paused(self) -> bool:
        return self._failures >= FAILURES and self._clock() < self._until_s

    def worked(self) -> None:
        """Record that the remote was reached, even if it refused the login."""
        self._failures, self._error = 0, None
