"""Whose commands may run, counted: the more places are taken, the fewer each user may have."""

from __future__ import annotations

import asyncio

import pytest

from helpers.broker.fair_share import FairShare
from helpers.broker.remote.pool import MAX_FOR_USER, MAX_RUNNING

pytestmark = pytest.mark.timeout(20)


async def _crowd(places: FairShare, users: int, each: int) -> list[asyncio.Task[None]]:
    """Have users ask for places, and keep those that they are given."""
    asking = [asyncio.create_task(places.take(f"user{user}")) for user in range(users) for _ in range(each)]
    for _ in range(3):
        await asyncio.sleep(0)
    return asking


async def _leave(asking: list[asyncio.Task[None]]) -> None:
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


@pytest.mark.parametrize(("users", "taken"), [(1, 8), (4, 30), (16, 85), (40, 124)])
async def test_a_crowd_leaves_room(users: int, taken: int) -> None:
    """However many places each asks for and never gives back, the next user has one at once."""
    places = FairShare(MAX_RUNNING, MAX_FOR_USER)
    asking = await _crowd(places, users, 20)
    assert (sum(task.done() for task in asking), MAX_RUNNING - places._free) == (taken, taken)
    assert places.has_room("alice")
    await asyncio.wait_for(places.take("alice"), 10)
    await _leave(asking)


async def test_there_are_no_more_places_than_there_are() -> None:
    """Of more users than places, each of whom asks for one, the rest wait."""
    places = FairShare(MAX_RUNNING, MAX_FOR_USER)
    asking = await _crowd(places, MAX_RUNNING + 2, 1)
    assert sum(task.done() for task in asking) == MAX_RUNNING
    places.release("user0")
    await asyncio.wait_for(asking[MAX_RUNNING], 10)
    assert not asking[MAX_RUNNING + 1].done()
    await _leave(asking)


async def test_a_place_that_is_given_back_goes_to_the_first_who_may_have_it() -> None:
    """A user who has as many as the free ones allow is passed over, and keeps the place in the queue."""
    places = FairShare(4, 4)  # as many as are free
    for user in ("alice", "alice", "bob"):
        await places.take(user)
    waiting = [asyncio.create_task(places.take(user)) for user in ("alice", "bob", "carol")]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [False, False, True]
    places.release("carol")
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [False, False, True]
    places.release("alice")
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, False, True]
    await _leave(waiting)


async def test_a_place_that_comes_as_its_asker_leaves_is_not_lost() -> None:
    """It goes to the next, or is free again."""
    places = FairShare(4, 1)
    await places.take("alice")
    waiting = asyncio.create_task(places.take("alice"))
    await asyncio.sleep(0)
    places.release("alice")  # which gives it to the one who waits
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
    assert (places._free, dict(places._held), places._waiting) == (4, {}, {})
