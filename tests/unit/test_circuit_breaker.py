"""The circuit breaker: a remote that is down is left alone, and found again."""

from __future__ import annotations

import pytest

from helpers.broker.remote.circuit_breaker import FAILURES, JITTER, PAUSES_S, CircuitBreaker
from helpers.protocol.errors import RemoteRefusedError
from lab.fakes import ManualClock

_DOWN = RemoteRefusedError("the remote host refuses connections")


def _open(clock: ManualClock, failures: int = FAILURES, spread: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker(clock, lambda: spread)
    for number in range(failures):
        if number >= FAILURES:
            clock.now_s += PAUSES_S[-1]
        breaker.failed(_DOWN)
    return breaker


def test_a_new_breaker_lets_connections_be_tried() -> None:
    """Nothing has failed yet."""
    CircuitBreaker(ManualClock()).check()


def test_one_failure_may_be_chance() -> None:
    """Below the limit the next login tries again."""
    _open(ManualClock(), FAILURES - 1).check()


def test_failures_in_a_row_leave_the_remote_alone() -> None:
    """Whoever comes next hears of the last failure, and the remote of nobody."""
    with pytest.raises(RemoteRefusedError, match="refuses connections"):
        _open(ManualClock()).check()


def test_the_remote_is_tried_again_after_the_pause() -> None:
    """Not a moment before, and then at once."""
    clock = ManualClock()
    breaker = _open(clock)
    clock.now_s += PAUSES_S[0] - 0.001
    with pytest.raises(RemoteRefusedError):
        breaker.check()
    clock.now_s += 0.001
    breaker.check()


@pytest.mark.parametrize("failures", range(FAILURES, FAILURES + len(PAUSES_S) + 3))
def test_pauses_grow_to_a_limit(failures: int) -> None:
    """Each further failure lengthens the pause, up to the last of the list."""
    clock = ManualClock()
    breaker = _open(clock, failures)
    pause_s = PAUSES_S[min(failures - FAILURES, len(PAUSES_S) - 1)]
    clock.now_s += pause_s - 0.001
    with pytest.raises(RemoteRefusedError):
        breaker.check()
    clock.now_s += 0.001
    breaker.check()


def test_what_was_under_way_is_no_further_failure() -> None:
    """Ten logins that meet with the same outage lead to the pause of one, not to the longest."""
    clock = ManualClock()
    breaker = _open(clock)
    for _ in range(10):
        breaker.failed(_DOWN)
    clock.now_s += PAUSES_S[0]
    breaker.check()


@pytest.mark.parametrize("spread", [-1.0, 1.0])
def test_pauses_are_jittered(spread: float) -> None:
    """Several gateways of one remote do not come back in step."""
    clock = ManualClock()
    breaker = _open(clock, spread=spread)
    clock.now_s += PAUSES_S[0] * (1 + JITTER * spread)
    breaker.check()


def test_a_remote_that_answers_closes_it() -> None:
    """One connection that worked, and the count starts anew."""
    breaker = _open(ManualClock())
    breaker.worked()
    breaker.check()
    breaker.failed(_DOWN)
    breaker.check()
