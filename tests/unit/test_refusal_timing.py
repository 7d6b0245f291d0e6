"""Refusals take equally long, whatever the reason."""

from __future__ import annotations

import pytest

from helpers.broker.keys.refusal_timing import MAX_S, SAMPLES, RefusalTiming
from lab.fakes import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    """Make a clock."""
    return ManualClock()


@pytest.fixture
def pacing(clock: ManualClock) -> RefusalTiming:
    """Make one that has seen a fetch of 0.8 s."""
    made = RefusalTiming(clock)
    made.fetched("alice", 0.8)
    return made


def test_before_the_first_fetch_nothing_waits(clock: ManualClock) -> None:
    """There is nothing to compare with."""
    fresh = RefusalTiming(clock)
    fresh.looked_up("alice")
    assert fresh.left_s("alice") == 0.0


@pytest.mark.parametrize("took_s", [0.0, 0.3, 0.79])
def test_a_quick_refusal_waits_for_the_time_of_a_fetch(
    pacing: RefusalTiming, clock: ManualClock, took_s: float
) -> None:
    """Whatever it took, the answer leaves 0.8 s after the login's beginning."""
    pacing.looked_up("alice")
    clock.now_s += took_s
    assert pacing.left_s("alice") == pytest.approx(0.8 - took_s)


def test_a_slow_refusal_does_not_wait(pacing: RefusalTiming, clock: ManualClock) -> None:
    """Nor does the second wrong key of one login."""
    pacing.looked_up("alice")
    clock.now_s += 0.9
    assert pacing.left_s("alice") == 0.0


def test_who_keeps_a_login_waiting_gains_nothing(pacing: RefusalTiming, clock: ManualClock) -> None:
    """A second login of the name, while the first has learned in secret what there is, takes as long."""
    pacing.looked_up("alice")
    clock.now_s += 10
    pacing.looked_up("alice")
    assert pacing.left_s("alice") == pytest.approx(0.8)


def test_a_name_without_a_lookup_waits_all_the_same(pacing: RefusalTiming) -> None:
    """Root is not looked up."""
    assert pacing.left_s("root") == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("fetches_s", "paced_s"),
    [
        ([0.5, 0.9, 0.7], 0.9),  # the slowest
        ([0.5] * 15 + [4.9], 1.0),  # one account, or a stalled fetch
        ([4.9] + [0.5] * 15, 1.0),
        ([0.5] * 9 + [4.9] * 7, 1.0),
        ([0.5, 4.9], 1.0),
        ([4.9] * 9 + [0.5] * 7, 4.9),  # most are so slow
        ([60.0] * 16, MAX_S),
        ([60.0] + [0.5] * SAMPLES, 0.5),  # long past
    ],
)
def test_the_slowest_of_the_last_fetches_counts(clock: ManualClock, fetches_s: list[float], paced_s: float) -> None:
    """It counts twice the median at the most."""
    pacing = RefusalTiming(clock)
    for number, fetch_s in enumerate(fetches_s):
        pacing.fetched(f"user{number}", fetch_s)
    assert pacing.left_s("alice") == pytest.approx(paced_s)


def test_a_user_counts_once(pacing: RefusalTiming) -> None:
    """Whoever is fetched again and again is one of the last users, with the last fetch."""
    for _ in range(3 * SAMPLES):
        pacing.fetched("mallory", 4.9)
    assert pacing.left_s("alice") == pytest.approx(1.6)
    pacing.fetched("mallory", 0.9)
    assert pacing.left_s("alice") == pytest.approx(0.9)
