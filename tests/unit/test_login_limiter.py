"""Turns to log in on the remote: so many at once, fewer for strangers; a turn ends with its process."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from helpers.broker.sessions import login_limiter
from helpers.broker.sessions.login_limiter import (
    LOGIN_S,
    MAX_LOGINS,
    MAX_STRANGERS,
    MAX_WAITING,
    MAX_WAITING_FOR_SOURCE,
    LoginLimiter,
    source_of,
)
from helpers.protocol.deadlines import TURN_WAIT_S
from helpers.protocol.errors import RemoteTimeoutError

pytestmark = pytest.mark.timeout(30)


class Processes:
    """Processes that hold turns."""

    def __init__(self, stack: ExitStack) -> None:
        """Begin with none."""
        self._stack = stack

    def start(self) -> subprocess.Popen[bytes]:
        """Start one that waits until it is ended."""
        started = self._stack.enter_context(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        self._stack.callback(started.kill)
        return started


@pytest.fixture
def turns() -> LoginLimiter:
    """Make a limiter whose turns are all free."""
    return LoginLimiter()


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Start none yet; all end with the test."""
    with ExitStack() as stack:
        yield Processes(stack)


async def _waits(task: asyncio.Task[float]) -> bool:
    done, _ = await asyncio.wait({task}, timeout=0.05)
    return not done


async def test_one_source_leaves_turns_for_others(turns: LoginLimiter, processes: Processes) -> None:
    """Of seven turns for strangers the fourth of one source waits, while another has one at once."""
    first = processes.start()
    await turns.take_turn(first.pid, "192.0.2.1", known=False)
    for _ in range(2):
        await turns.take_turn(processes.start().pid, "192.0.2.1", known=False)
    fourth = asyncio.create_task(turns.take_turn(processes.start().pid, "192.0.2.1", known=False))
    assert await _waits(fourth)
    await turns.take_turn(processes.start().pid, "192.0.2.2", known=False)
    assert not fourth.done()
    first.kill()
    await fourth


async def test_strangers_leave_turns_for_users_who_have_logged_in(turns: LoginLimiter, processes: Processes) -> None:
    """From however many sources they come; the turns for the others are ten together."""
    strangers = [processes.start() for _ in range(MAX_STRANGERS)]
    for number, process in enumerate(strangers):
        await turns.take_turn(process.pid, f"192.0.2.{number}", known=False)
    eighth = asyncio.create_task(turns.take_turn(processes.start().pid, "192.0.2.99", known=False))
    assert await _waits(eighth)
    for number in range(MAX_LOGINS - MAX_STRANGERS):
        assert await turns.take_turn(processes.start().pid, f"user {number}", known=True) == LOGIN_S
    eleventh = asyncio.create_task(turns.take_turn(processes.start().pid, "user 99", known=True))
    assert await _waits(eleventh)
    # The stranger has waited for longer; but the turn that is free now serves both, and both have it in the end.
    for process in strangers[:2]:
        process.kill()
    await asyncio.gather(eighth, eleventh)


async def test_strangers_have_less_time_the_fewer_turns_are_free(turns: LoginLimiter, processes: Processes) -> None:
    """The only stranger may take a minute to find the token; the last turn is soon free again."""
    seconds = [
        await turns.take_turn(processes.start().pid, f"192.0.2.{number}", known=False)
        for number in range(MAX_STRANGERS)
    ]
    assert (seconds[0], seconds) == (LOGIN_S, sorted(seconds, reverse=True))
    assert seconds[-1] < TURN_WAIT_S


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::ffff:0:0:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        (None, "user alice"),
    ],
)
def test_what_counts_as_one_source(address: str | None, source: str) -> None:
    """An address, an IPv6 network, of whose addresses one stranger has 2**64, or behind a proxy the name."""
    assert source_of(address, "alice") == source


async def test_sources_are_forgotten(turns: LoginLimiter, processes: Processes) -> None:
    """Addresses that came once take no memory, and their turns are free again."""
    for number in range(MAX_STRANGERS + MAX_LOGINS):
        process = processes.start()
        await turns.take_turn(process.pid, f"192.0.2.{number}", known=False)
        process.kill()
    await asyncio.gather(*turns._held)
    assert (turns._turns.free, turns._strangers.free) == (MAX_LOGINS, MAX_STRANGERS)
    assert not turns._turns._held


async def test_a_process_that_has_ended_takes_no_turn(turns: LoginLimiter, processes: Processes) -> None:
    """A client may leave before its turn comes."""
    gone = processes.start()
    gone.kill()
    gone.wait()
    with pytest.raises(ProcessLookupError):
        await turns.take_turn(gone.pid, "192.0.2.1", known=False)


async def test_a_turn_that_does_not_come(
    monkeypatch: pytest.MonkeyPatch, turns: LoginLimiter, processes: Processes
) -> None:
    """The user is told to try again, and a login that waits in vain holds nothing afterwards."""
    monkeypatch.setattr(login_limiter, "TURN_WAIT_S", 0.05)
    for number in range(MAX_LOGINS):
        await turns.take_turn(processes.start().pid, f"user {number}", known=True)
    with pytest.raises(RemoteTimeoutError, match="busy with other logins"):
        await turns.take_turn(processes.start().pid, "192.0.2.1", known=False)
    assert turns._strangers.free == MAX_STRANGERS


async def test_few_wait(monkeypatch: pytest.MonkeyPatch, turns: LoginLimiter, processes: Processes) -> None:
    """Of one source twenty may wait, of all a hundred; one more is told so at once, and waiting ends with the wait."""
    monkeypatch.setattr(login_limiter, "TURN_WAIT_S", 0.3)
    pid = processes.start().pid
    for number in range(MAX_STRANGERS):
        await turns.take_turn(pid, f"192.0.2.{number}", known=False)
    sources = [f"198.51.100.{number}" for number in range(MAX_WAITING // MAX_WAITING_FOR_SOURCE + 1)]
    asked = [
        asyncio.create_task(turns.take_turn(pid, source, known=False))
        for source in sources
        for _ in range(MAX_WAITING_FOR_SOURCE + 1)
    ]
    done, waiting = await asyncio.wait(asked, timeout=0.05)
    assert len(waiting) == MAX_WAITING
    assert {str(task.exception()) for task in done} == {login_limiter._BUSY}
    await asyncio.gather(*asked, return_exceptions=True)
    assert not turns._waiting
