"""Turns to log in on the remote: so many at once, so many for one address, and over when their process is."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import pytest

from helpers.broker import logins
from helpers.broker.logins import MAX_FOR_ADDRESS, MAX_LOGINS, Logins
from helpers.errors import RemoteTimeoutError


class Crowd:
    """Processes that hold turns."""

    def __init__(self, stack: ExitStack) -> None:
        """Begin with none."""
        self._stack = stack

    def process(self) -> subprocess.Popen[bytes]:
        """Start one that waits until it is ended."""
        started = self._stack.enter_context(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        self._stack.callback(started.kill)
        return started


def _run(scenario: Callable[[Logins, Crowd], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        with ExitStack() as stack:
            async with asyncio.timeout(30):
                await scenario(Logins(), Crowd(stack))

    asyncio.run(run())


async def _waits(task: asyncio.Task[None]) -> bool:
    done, _ = await asyncio.wait({task}, timeout=0.05)
    return not done


def test_one_address_has_its_share_and_the_rest_theirs() -> None:
    """The sixth from one address waits, while others go on up to ten; each end lets one more in."""

    async def scenario(turns: Logins, crowd: Crowd) -> None:
        first = crowd.process()
        await turns.take_turn(first.pid, "192.0.2.1")
        for _ in range(MAX_FOR_ADDRESS - 1):
            await turns.take_turn(crowd.process().pid, "192.0.2.1")
        sixth = asyncio.create_task(turns.take_turn(crowd.process().pid, "192.0.2.1"))
        assert await _waits(sixth)
        for number in range(MAX_LOGINS - MAX_FOR_ADDRESS):
            await turns.take_turn(crowd.process().pid, f"192.0.2.{10 + number}")
        eleventh = asyncio.create_task(turns.take_turn(crowd.process().pid, None))
        assert await _waits(eleventh)
        assert not sixth.done()
        first.kill()
        done, waiting = await asyncio.wait({sixth, eleventh}, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(waiting)) == (1, 1)
        for task in waiting:
            task.cancel()

    _run(scenario)


def test_the_addresses_of_one_ipv6_network_share_one() -> None:
    """Whoever has one IPv6 address has 2**64 of them; the network beside it is somebody else's."""

    async def scenario(turns: Logins, crowd: Crowd) -> None:
        for number in range(MAX_FOR_ADDRESS):
            await turns.take_turn(crowd.process().pid, f"2001:db8::{number:x}:1")
        sixth = asyncio.create_task(turns.take_turn(crowd.process().pid, "2001:db8::ffff:0:0:1"))
        assert await _waits(sixth)
        await turns.take_turn(crowd.process().pid, "2001:db8:0:1::1")
        await turns.take_turn(crowd.process().pid, "fe80::1%eth0")
        sixth.cancel()

    _run(scenario)


def test_addresses_are_forgotten() -> None:
    """Who came once, and from as many addresses as there are, takes no memory."""

    async def scenario(turns: Logins, crowd: Crowd) -> None:
        for number in range(MAX_LOGINS):
            process = crowd.process()
            await turns.take_turn(process.pid, f"192.0.2.{number}")
            process.kill()
        await turns.take_turn(crowd.process().pid, "192.0.2.99")
        while len(turns._held) > 1:
            turns._changed.clear()
            await turns._changed.wait()
        assert list(turns._sources) == ["192.0.2.99"]

    _run(scenario)


def test_clients_behind_a_proxy_share_no_limit_but_the_one_for_all() -> None:
    """Nobody knows their addresses."""

    async def scenario(turns: Logins, crowd: Crowd) -> None:
        for _ in range(MAX_LOGINS):
            await turns.take_turn(crowd.process().pid, None)

    _run(scenario)


def test_a_process_that_has_ended_takes_no_turn() -> None:
    """Clients leave while they wait."""

    async def scenario(turns: Logins, crowd: Crowd) -> None:
        gone = crowd.process()
        gone.kill()
        gone.wait()
        for _ in range(MAX_LOGINS + 1):
            await turns.take_turn(gone.pid, "192.0.2.1")

    _run(scenario)


def test_a_turn_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user is told to try again."""
    monkeypatch.setattr(logins, "WAIT_S", 0.05)

    async def scenario(turns: Logins, crowd: Crowd) -> None:
        for _ in range(MAX_LOGINS):
            await turns.take_turn(crowd.process().pid, None)
        with pytest.raises(RemoteTimeoutError, match="busy with other logins"):
            await turns.take_turn(crowd.process().pid, None)

    _run(scenario)
