"""A circuit breaker: a remote that is down is not asked again by every login."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from helpers.protocol.errors import GatewayError

FAILURES = 3
"""Failures of the network in a row after which connections are no longer tried: one may be chance."""

PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Seconds without a try, after each further failure; the last one repeats. A user who comes back half a minute after
the remote did gets in."""

JITTER = 0.5
"""Each pause is longer or shorter by up to this share of it, so that gateways do not all come back at once."""


class CircuitBreaker:
    """Remembers how the last connections went.

    Args:
        clock: Seconds, monotonic.
        spread: Answers a number from -1 to 1, for the jitter.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311 - nobody gains by guessing it
    ) -> None:
        """Start closed: connections are made."""
        self._clock, self._spread = clock, spread
        self._failures = 0
        self._until_s = 0.0
        self._error: GatewayError | None = None

    def check(self) -> None:
        """Let a connection be tried, or not.

        Raises:
            GatewayError: The last failure again, while the remote is left alone.
        """
        if self._error is not None and self._is_paused:
            raise type(self._error)(self._error.message)

    def failed(self, error: GatewayError) -> None:
        """Note that the remote could not be reached.

        What fails while the remote is left alone was under way before, and is no further failure: where ten logins meet
        with a moment's outage, the pause is as short as where one does.
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
        """Note that the remote was reached, whatever it then said."""
        self._failures, self._error = 0, None
