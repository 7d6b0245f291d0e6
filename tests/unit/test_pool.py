"""The pool of warm connections: shared, bounded, replaced when dead."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine

import pytest

from helpers.broker.remote.attempt import Attempt
from helpers.broker.remote.circuit_breaker import FAILURES
from helpers.broker.remote.pool import (
    ACKNOWLEDGE_S,
    IDLE_S,
    MAX_AGE_S,
    MAX_CONNECTING,
    MAX_FOR_USER,
    MAX_RUNNING,
    MAX_STRANGERS,
    MAX_WAITING,
    MAX_WARM,
    STRANGER_IDLE_S,
    CommandResult,
    Completed,
    Connections,
    LoginLostError,
    LoginTimeoutError,
    NoRoomError,
    _first,
)
from helpers.protocol.deadlines import RUN_TIMEOUT_S
from helpers.protocol.errors import (
    GatewayError,
    MoshServerError,
    NoCommonAlgorithmError,
    PermissionDeniedError,
    RemoteLostError,
    RemoteRefusedError,
    RemoteTimeoutError,
)
from lab.fakes import FakeConnection, ManualClock
from lab.waiting import turn_until

pytestmark = pytest.mark.timeout(20)


class GatedConnection(FakeConnection):
    """A connection whose commands wait for a gate, or fail.

    Attributes:
        error: The error that each command raises; None for success.
        room: How many commands may run at once.
        running: How many do.
        prepared: Set when the next channel was opened ahead.
        gate: Commands wait for it.
    """

    def __init__(self) -> None:
        super().__init__(self._pass_gate)
        self.error: GatewayError | None = None
        self.room, self.running = 10, 0
        self.prepared = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()

    def prepare(self, timeout_s: float) -> None:
        """Note that the next channel was opened ahead."""
        assert timeout_s > 0
        self.prepared.set()

    def _pass_gate(self, _: str) -> Completed:
        with self._lock:
            if self.running == self.room:
                raise NoRoomError("MaxSessions")
            self.running += 1
        assert self.gate.wait(20)
        with self._lock:
            self.running -= 1
        if self.error is not None:
            raise self.error
        return Completed(b"ok", b"", 0)


class FakeRemote:
    """Makes connections, and counts them.

    Attributes:
        made: The connections, in order.
        users: The users that they are for.
        begun: The commands that were begun with them.
        attempts: The attempts that were told how it went.
        error: The error that connecting raises; None for success.
        gate: Connecting waits for it.
        gates: The gates that some attempts wait for instead, by their numbers from 1 up.
        holds: Whether commands over a new connection wait for the connection's own gate.
        room: How many commands may run over a connection at once.
    """

    def __init__(self) -> None:
        self.made: list[GatedConnection] = []
        self.users: list[str] = []
        self.begun: list[str | None] = []
        self.attempts: list[Attempt] = []
        self.error: GatewayError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.gates: dict[int, threading.Event] = {}
        self.holds, self.room = False, 10

    def connect(self, user: str, command: Callable[[str], str] | None, attempt: Attempt) -> GatedConnection:
        """Connect."""
        self.attempts.append(attempt)
        self.users.append(user)
        self.begun.append(None if command is None else command("192.0.2.1"))
        assert self.gates.get(len(self.users), self.gate).wait(20)
        if self.error is not None:
            raise self.error
        made = GatedConnection()
        made.room = self.room
        if self.holds:
            made.gate.clear()
        self.made.append(made)
        return made


class Pool(Connections):
    """The pool under test, with its remote and its clock at hand. Of its users, alice alone had a session before."""

    def __init__(self) -> None:
        self.remote, self.clock = FakeRemote(), ManualClock()
        super().__init__(self.remote.connect, self.clock, lambda name: name == "alice")

    async def do(self, user: str = "alice", line: str = "cat") -> CommandResult:
        """Run something."""
        return await self.run(user, lambda address: f"{line} {address}", max_bytes=100)


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    """Make a pool, and let go after the test what still waits in its threads."""
    pool = Pool()
    yield pool
    for gate in (pool.remote.gate, *pool.remote.gates.values()):
        gate.set()
    for connection in pool.remote.made:
        connection.gate.set()
    pool.close()


async def test_a_connection_is_made_once_and_stays_warm(pool: Pool) -> None:
    """The second command goes over the first one's connection, and the next channel is prepared."""
    first, second = await pool.do(), await pool.do(line="mosh")
    assert first == CommandResult(Completed(b"ok", b"", 0), "192.0.2.1", 0.0, 0.0)
    assert second.completed.stdout == b"ok"
    assert pool.remote.users == ["alice"]
    assert pool.remote.made[0].lines == ["cat 192.0.2.1", "mosh 192.0.2.1"]
    assert pool.remote.made[0].limits == [(100, RUN_TIMEOUT_S)] * 2
    await turn_until(pool.remote.made[0].prepared.is_set)
    assert pool.connection("alice") is pool.remote.made[0]
    assert (len(pool), pool.age_s("alice")) == (1, 0.0)


async def test_the_first_command_begins_with_the_connection(pool: Pool) -> None:
    """The command that makes a connection is begun with it; warming up begins none, and nor does a later command."""
    pool.warm_up("alice")
    await turn_until(lambda: pool.remote.users == ["alice"])
    await pool.do("alice")
    await pool.do("bob")
    await pool.do("bob", "mosh")
    assert pool.remote.begun == [None, "cat 192.0.2.1"]


async def test_users_never_share_a_connection(pool: Pool) -> None:
    """Each user's commands go over a connection that was authenticated as that user."""
    await pool.do("alice", "a")
    await pool.do("bob", "b")
    assert pool.remote.users == ["alice", "bob"]
    assert [connection.lines for connection in pool.remote.made] == [["a 192.0.2.1"], ["b 192.0.2.1"]]
    assert pool.connection("eve") is None
    assert pool.age_s("eve") is None


async def test_many_askers_share_one_connection(pool: Pool) -> None:
    """All who need a connection that is being made wait for it, also where warming up began it."""
    pool.remote.gate.clear()
    pool.warm_up("alice")
    pool.warm_up("alice")
    askers = [asyncio.create_task(pool.do()) for _ in range(20)]
    await turn_until(lambda: pool.remote.users == ["alice"])
    pool.remote.gate.set()
    await asyncio.gather(*askers)
    pool.warm_up("alice")
    await asyncio.sleep(0)
    assert pool.remote.users == ["alice"]
    assert len(pool.remote.made[0].lines) == 20


async def test_askers_for_whom_a_shared_connection_has_no_room_get_their_own(pool: Pool) -> None:
    """Where MaxSessions is 1, three who share a new connection end with three, in whatever order they come.

    A new connection that has no room for the only command on it is a failure.
    """
    pool.remote.holds, pool.remote.room = True, 1
    pool.warm_up("alice")
    askers = [asyncio.create_task(pool.do()) for _ in range(3)]
    await turn_until(lambda: sum(connection.running for connection in pool.remote.made) == 3)
    assert len(pool.remote.made) == 3
    for connection in pool.remote.made:
        connection.gate.set()
    await asyncio.gather(*askers)

    pool.remote.room = 0
    with pytest.raises(NoRoomError):
        await pool.do("bob")


async def test_a_user_whose_commands_hang_leaves_room_for_others(pool: Pool) -> None:
    """Of one user's commands only so many run at once; those whose askers have left never run."""
    pool.remote.holds, pool.remote.room = True, 1000
    hanging = [asyncio.create_task(pool.do()) for _ in range(MAX_RUNNING + 1)]
    await turn_until(lambda: bool(pool.remote.made) and pool.remote.made[0].running == MAX_FOR_USER)
    assert await pool.run_in_background("alice", "cat", max_bytes=100) is None
    pool.remote.holds = False
    assert (await pool.do("bob")).completed.stdout == b"ok"
    for task in hanging[MAX_FOR_USER:]:
        task.cancel()
    pool.remote.made[0].gate.set()
    await asyncio.gather(*hanging, return_exceptions=True)
    assert len(pool.remote.made[0].lines) == MAX_FOR_USER


async def test_users_whose_commands_hang_leave_room_for_others(pool: Pool) -> None:
    """Five users with eight each, and askers who leave and come again, do not take all threads."""
    pool.remote.holds, pool.remote.room = True, 1000
    names = [f"user{number}" for number in range(5)]
    hanging = [asyncio.create_task(pool.do(name)) for name in names for _ in range(MAX_FOR_USER)]
    await turn_until(lambda: sum(made.running for made in pool.remote.made) > 4 * MAX_FOR_USER)
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    before = sum(made.running for made in pool.remote.made)
    again = [asyncio.create_task(pool.do(name)) for name in names for _ in range(MAX_RUNNING)]
    await asyncio.sleep(0)
    pool.remote.holds = False
    assert (await pool.do("bob")).completed.stdout == b"ok"
    # A thread ends no sooner for an asker who leaves: it counts as long as it is there.
    assert sum(made.running for made in pool.remote.made) == before
    for task in again:
        task.cancel()
    for made in pool.remote.made:
        made.gate.set()
    await asyncio.gather(*again, return_exceptions=True)


async def test_a_command_without_a_thread_takes_no_place(monkeypatch: pytest.MonkeyPatch, pool: Pool) -> None:
    """When no thread can be started for a while, as at a limit of processes, no place is lost."""
    await pool.do()
    await turn_until(pool.remote.made[0].prepared.is_set)
    await asyncio.sleep(0)

    def submit(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(pool._runners, "submit", submit)
        for _ in range(2 * MAX_FOR_USER):
            with pytest.raises(RuntimeError):
                await pool.do()
    assert (await pool.do()).completed.stdout == b"ok"


async def test_an_asker_who_leaves_takes_nothing_away(pool: Pool) -> None:
    """A cancelled asker leaves the connection to the others."""
    pool.remote.gate.clear()
    leaver, stayer = (asyncio.create_task(pool.do()) for _ in range(2))
    await turn_until(lambda: pool.remote.users == ["alice"])
    leaver.cancel()
    await asyncio.wait([leaver])
    pool.remote.gate.set()
    assert (await stayer).completed.stdout == b"ok"
    assert leaver.cancelled()
    assert pool.remote.users == ["alice"]


async def test_a_failure_to_connect_reaches_all_and_is_not_kept(pool: Pool) -> None:
    """All who wait get the error; the next one tries again."""
    pool.remote.error = RemoteLostError("gone")
    outcomes = await asyncio.gather(*(pool.do() for _ in range(5)), return_exceptions=True)
    assert all(isinstance(outcome, RemoteLostError) for outcome in outcomes)
    assert (pool.remote.users, len(pool)) == (["alice"], 0)
    pool.remote.error = None
    await pool.do()
    assert pool.remote.users == ["alice", "alice"]


async def test_warming_up_in_vain_warns_of_nothing(pool: Pool) -> None:
    """A connection that nobody waits for may fail in silence; the next user tries again and gets the error."""
    pool.remote.error = RemoteLostError("away")
    pool.warm_up("alice")
    await turn_until(lambda: not pool._tasks)
    with pytest.raises(RemoteLostError):
        await pool.do()
    assert pool.remote.users == ["alice", "alice"]


async def test_the_address_of_a_connection_that_may_have_died_is_not_used(pool: Pool) -> None:
    """While the remote's kernel owes an acknowledgement of what was sent twice, no session's ssh is sent there."""
    await pool.do()
    pool.remote.made[0].unacknowledged = True
    assert (pool.connection("alice"), len(pool)) == (None, 1)
    pool.remote.made[0].unacknowledged = False
    assert pool.connection("alice") is pool.remote.made[0]


async def test_a_connection_that_is_known_to_be_dead_is_replaced(pool: Pool) -> None:
    """Nothing is sent over a connection that has ended, and it is not counted."""
    await pool.do()
    pool.remote.made[0].alive = False
    assert (pool.connection("alice"), len(pool)) == (None, 0)
    await pool.do()
    assert [len(connection.lines) for connection in pool.remote.made] == [1, 1]


@pytest.mark.parametrize("kind", [RemoteLostError, RemoteTimeoutError])
async def test_a_connection_that_turns_out_to_be_dead_is_replaced_once(kind: type[GatewayError], pool: Pool) -> None:
    """A warm connection may have died unnoticed: the command runs again over a new one, which is then kept."""
    await pool.do()
    pool.remote.made[0].error = kind("dead")
    await pool.do()
    old, new = pool.remote.made
    assert (old.alive, new.alive, len(pool)) == (False, True, 1)
    await pool.do()
    assert len(new.lines) == 2


async def test_a_new_connection_that_fails_is_not_tried_again(pool: Pool) -> None:
    """One replacement is enough: a second failure is the remote's."""
    await pool.do()
    pool.remote.made[0].error = RemoteLostError("dead")
    pool.remote.gate.clear()
    task = asyncio.create_task(pool.do())
    await turn_until(lambda: len(pool.remote.users) == 2)
    pool.remote.error = RemoteTimeoutError("away")
    pool.remote.gate.set()
    with pytest.raises(RemoteTimeoutError):
        await task
    assert len(pool.remote.users) == 2


async def test_what_nobody_acknowledges_gets_a_rival(pool: Pool) -> None:
    """A command that the remote's kernel did not acknowledge runs over a new connection, which replaces the old one."""
    await pool.do()
    (old,) = pool.remote.made
    old.round_trip_s, old.unacknowledged = -ACKNOWLEDGE_S, True
    old.gate.clear()
    assert (await pool.do()).completed.stdout == b"ok"
    assert pool.remote.users == ["alice", "alice"]
    await pool.do()
    assert [len(connection.lines) for connection in pool.remote.made] == [2, 2]


async def test_what_is_acknowledged_is_waited_for(pool: Pool) -> None:
    """A remote that has got the command may take its time: there is one connection, and one answer."""
    await pool.do()
    (connection,) = pool.remote.made
    connection.round_trip_s = -ACKNOWLEDGE_S
    connection.gate.clear()
    task = asyncio.create_task(pool.do())
    await turn_until(lambda: len(connection.lines) == 2)
    for _ in range(100):
        await asyncio.sleep(0)
    connection.gate.set()
    assert (await task).completed.stdout == b"ok"
    assert pool.remote.users == ["alice"]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rivals come at once."""
    monkeypatch.setattr("helpers.broker.remote.pool.RIVAL_AFTER_S", 0.0)
    monkeypatch.setattr("helpers.broker.remote.pool.RIVAL_STEP_S", 0.0)


def _unlucky(monkeypatch: pytest.MonkeyPatch, pool: Pool, *numbers: int) -> None:
    """Have some attempts lose packets, by their numbers from 1 up."""

    def is_losing(attempt: Attempt, after_s: float) -> bool:
        assert after_s == 0.0
        return any(attempt in pool.remote.attempts[number - 1 : number] for number in numbers)

    monkeypatch.setattr(Attempt, "is_losing", is_losing)


@pytest.mark.usefixtures("hasty")
async def test_a_connection_that_loses_packets_gets_a_rival(monkeypatch: pytest.MonkeyPatch, pool: Pool) -> None:
    """All who wait get the connection that is made first; the other is given up, closed, and counts for nothing."""
    gate = pool.remote.gates[1] = threading.Event()
    _unlucky(monkeypatch, pool, 1)
    askers = [asyncio.create_task(pool.do("bob")) for _ in range(3)]
    await asyncio.gather(*askers)
    assert pool.remote.users == ["bob", "bob"]
    assert [attempt.given_up for attempt in pool.remote.attempts] == [True, False]
    (made,) = pool.remote.made
    assert len(made.lines) == 3
    gate.set()
    await turn_until(lambda: len(pool.remote.made) == 2 and not pool.remote.made[1].alive)
    await pool.do("bob")
    assert (made.alive, len(made.lines), len(pool)) == (True, 4, 1)


@pytest.mark.usefixtures("hasty")
async def test_a_rival_that_is_slower_is_given_up(monkeypatch: pytest.MonkeyPatch, pool: Pool) -> None:
    """The first connection is kept where it is made after all; a rival that still waits for its turn never begins."""
    pool.remote.gate.clear()
    others = [asyncio.create_task(pool.do(f"u{number}")) for number in range(MAX_STRANGERS - 1)]
    await turn_until(lambda: len(pool.remote.users) == MAX_STRANGERS - 1)
    gate = pool.remote.gates[MAX_STRANGERS] = threading.Event()
    _unlucky(monkeypatch, pool, MAX_STRANGERS)
    asker = asyncio.create_task(pool.do("bob"))
    await turn_until(lambda: len(pool._strangers._waiters or ()) == 1)
    gate.set()
    await asker
    pool.remote.gate.set()
    await asyncio.gather(*others)
    await turn_until(lambda: pool._strangers._value == MAX_STRANGERS)
    assert pool.remote.users.count("bob") == 1
    await pool.do("bob")
    assert len(pool) == MAX_STRANGERS


@pytest.mark.usefixtures("hasty")
async def test_rivals_take_turns_of_their_own(monkeypatch: pytest.MonkeyPatch, pool: Pool) -> None:
    """However many connections lose packets, the remote sees no more of strangers' at once than it would."""
    pool.remote.gate.clear()
    _unlucky(monkeypatch, pool, *range(1, 100))
    askers = [asyncio.create_task(pool.do(f"u{number}")) for number in range(MAX_STRANGERS * 2)]
    await turn_until(lambda: len(pool._strangers._waiters or ()) == MAX_STRANGERS * 2)
    assert len(pool.remote.users) == MAX_STRANGERS
    pool.remote.gate.set()
    await asyncio.gather(*askers)


@pytest.mark.usefixtures("hasty")
async def test_a_slow_remote_gets_no_rival(monkeypatch: pytest.MonkeyPatch, pool: Pool) -> None:
    """Without lost packets there is one connection, however long it, or the first command over it, takes."""
    pool.remote.gate.clear()
    pool.remote.holds = True
    _unlucky(monkeypatch, pool)
    asker = asyncio.create_task(pool.do("bob"))
    for _ in range(100):
        await asyncio.sleep(0)
    pool.remote.gate.set()
    await turn_until(lambda: bool(pool.remote.made) and bool(pool.remote.made[0].lines))
    for _ in range(100):
        await asyncio.sleep(0)
    pool.remote.made[0].gate.set()
    await asker
    assert pool.remote.users == ["bob"]


@pytest.mark.usefixtures("hasty")
async def test_the_first_command_over_a_connection_that_loses_packets_gets_a_rival(
    monkeypatch: pytest.MonkeyPatch, pool: Pool
) -> None:
    """The answer may be what was lost: the command runs again over another connection, which is then kept."""
    pool.remote.holds = True
    _unlucky(monkeypatch, pool)
    asker = asyncio.create_task(pool.do("bob"))
    await turn_until(lambda: bool(pool.remote.made) and bool(pool.remote.made[0].lines))
    pool.remote.holds = False
    pool.remote.made[0].lost_packets = True
    assert (await asker).completed.stdout == b"ok"
    assert pool.remote.users == ["bob", "bob"]
    await pool.do("bob")
    assert len(pool.remote.made[1].lines) == 2


@pytest.mark.usefixtures("hasty")
async def test_a_refusal_needs_no_second_opinion(monkeypatch: pytest.MonkeyPatch, pool: Pool) -> None:
    """When the remote refuses one of two attempts, the other one is not waited for."""
    pool.remote.gates[1] = threading.Event()
    pool.remote.error = PermissionDeniedError("no")
    _unlucky(monkeypatch, pool, 1)
    with pytest.raises(PermissionDeniedError):
        await pool.do("bob")
    assert pool.remote.users == ["bob", "bob"]


@pytest.mark.usefixtures("hasty")
async def test_an_attempt_that_was_given_up_is_no_failure_of_the_remotes(
    monkeypatch: pytest.MonkeyPatch, pool: Pool
) -> None:
    """An attempt that the gateway gives up does not open the breaker, however often."""
    for number in range(FAILURES * 2):
        gate = pool.remote.gates[2 * number + 1] = threading.Event()
        _unlucky(monkeypatch, pool, 2 * number + 1)
        await pool.do(f"u{number}")
        pool.remote.error = RemoteLostError("hung up")
        gate.set()
        await turn_until(lambda: pool._turns._value == MAX_CONNECTING)
        pool.remote.error = None
    pool._breaker.check()
    assert (pool._breaker._failures, len(pool)) == (0, FAILURES * 2)


async def test_other_errors_are_no_sign_of_death(pool: Pool) -> None:
    """A command that the remote refuses over a live connection is not run again."""
    await pool.do()
    pool.remote.made[0].error = MoshServerError("no")
    with pytest.raises(MoshServerError):
        await pool.do()
    assert pool.remote.made[0].alive
    assert pool.remote.users == ["alice"]


async def test_an_old_connection_is_not_used(pool: Pool) -> None:
    """After MAX_AGE_S the remote decides anew who may log in, however busy the connection was."""
    await pool.do()
    pool.clock.now_s += MAX_AGE_S
    await pool.do()
    assert len(pool.remote.made) == 1
    pool.clock.now_s += 1
    await pool.do()
    assert [connection.alive for connection in pool.remote.made] == [False, True]


async def test_giving_a_connection_up(pool: Pool) -> None:
    """A user's connection is closed by name; one that was replaced meanwhile is not mistaken for its successor."""
    await pool.do()
    await pool.do("bob")
    pool.forget("alice")
    pool.forget("eve")
    assert [connection.alive for connection in pool.remote.made] == [False, True]
    await pool.do()
    pool.forget("alice", pool.remote.made[0])
    assert pool.remote.made[2].alive


async def test_the_sweep_closes_what_is_idle_old_or_dead(pool: Pool) -> None:
    """Idle and old connections go, and dead ones; those in use stay whatever their age."""
    for user in ("idle", "dead", "used", "running"):
        await pool.do(user)
        pool.note_session(user)
    idle, dead, used, running = pool.remote.made
    running.gate.clear()
    task = asyncio.create_task(pool.do("running"))
    await turn_until(lambda: len(running.lines) == 2)
    dead.alive = False
    pool.clock.now_s += IDLE_S
    await pool.do("used")
    pool.clock.now_s += 1
    pool.sweep()
    assert (idle.alive, used.alive, running.alive, len(pool)) == (False, True, True, 2)
    pool.clock.now_s += MAX_AGE_S
    pool.sweep()
    assert (used.alive, running.alive, len(pool)) == (False, True, 1)
    running.gate.set()
    await task


async def test_what_the_gateway_runs_for_itself_is_no_use(pool: Pool) -> None:
    """It keeps no connection open for longer, makes none, and leaves one that fails to its next user."""
    assert await pool.run_in_background("alice", "cat", max_bytes=100) is None
    assert pool.remote.made == []
    await pool.do()
    pool.clock.now_s += IDLE_S
    assert await pool.run_in_background("alice", "cat", max_bytes=100) == Completed(b"ok", b"", 0)
    pool.remote.made[0].error = RemoteTimeoutError("no")
    assert await pool.run_in_background("alice", "cat", max_bytes=100) is None
    assert (pool.remote.made[0].lines[1:], len(pool)) == (["cat", "cat"], 1)
    assert pool.remote.made[0].limits == [(100, RUN_TIMEOUT_S)] * 3
    # Nor does it take the channel that is ready for the next user.
    assert pool.remote.made[0].ahead == [False, True, True]
    pool.note_session("alice")
    pool.clock.now_s += 1
    pool.sweep()
    assert (pool.remote.made[0].alive, len(pool.remote.made), len(pool)) == (False, 1, 0)


async def test_who_will_probably_be_back(pool: Pool) -> None:
    """They are the users who last had a session over their connection, for as long as it is kept."""
    for user in ("first", "stranger", "second", "third"):
        await pool.do(user)
        if user != "stranger":
            pool.note_session(user)
    assert pool.recent_users(9) == ["first", "second", "third"]
    await pool.do("first")
    await pool.run_in_background("second", "cat", max_bytes=100)
    assert pool.recent_users(2) == ["third", "first"]
    pool.clock.now_s += IDLE_S
    await pool.do("third")
    pool.clock.now_s += 1
    assert pool.recent_users(9) == ["third"]


async def test_a_connection_that_no_session_came_of_goes_soon(pool: Pool) -> None:
    """Strangers who know a user's name do not hold a connection open for longer than a minute after they left."""
    for user in ("stranger", "user"):
        await pool.do(user)
    pool.note_session("user")
    pool.note_session("nobody")
    pool.clock.now_s += STRANGER_IDLE_S
    pool.sweep()
    assert len(pool) == 2
    pool.clock.now_s += 1
    pool.sweep()
    assert [connection.alive for connection in pool.remote.made] == [False, True]


async def test_who_waited_while_the_remote_went_down_is_not_tried(pool: Pool) -> None:
    """Once the breaker is open, all that queue for a turn fail with its reason, and cost no connection."""
    pool.remote.gate.clear()
    pool.remote.error = RemoteTimeoutError("no answer")
    waiting = [asyncio.create_task(pool.do(f"u{number}")) for number in range(MAX_CONNECTING * 5)]
    await turn_until(lambda: len(pool.remote.users) == MAX_STRANGERS)
    pool.remote.gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(result) for result in results} == {RemoteTimeoutError}
    # Those that were under way, and one for each failure that did not open it yet.
    assert len(pool.remote.users) < MAX_CONNECTING + FAILURES


@pytest.mark.parametrize("kind", [RemoteLostError, RemoteRefusedError, NoCommonAlgorithmError])
async def test_a_remote_that_fails_every_user_is_left_alone(kind: type[GatewayError], pool: Pool) -> None:
    """After some failures in a row, all others get the last error, and the remote gets no connection."""
    pool.remote.error = kind("for nobody")
    for number in range(FAILURES * 2):
        with pytest.raises(kind):
            await pool.do(f"u{number}")
    assert len(pool.remote.users) == FAILURES


@pytest.mark.parametrize("kind", [LoginLostError, LoginTimeoutError])
async def test_a_remote_that_fails_one_user_is_not_down(kind: type[GatewayError], pool: Pool) -> None:
    """However often a login fails that the remote has begun with, others are tried."""
    for number in range(FAILURES * 2):
        pool.remote.error = kind("not you")
        with pytest.raises(kind):
            await pool.do(f"u{number}")
    pool.remote.error = None
    await pool.do("bob")


async def test_the_pool_is_bounded(pool: Pool) -> None:
    """One connection over MAX_WARM closes the one that was used longest ago, and never one that is in use."""
    for number in range(MAX_WARM):
        await pool.do(f"u{number}")
    first, second, third = pool.remote.made[:3]
    await pool.do("u0")
    second.gate.clear()
    task = asyncio.create_task(pool.do("u1"))
    await turn_until(lambda: len(second.lines) == 2)
    await pool.do("one-more")
    assert len(pool) == MAX_WARM
    assert (first.alive, second.alive, third.alive) == (True, True, False)
    second.gate.set()
    await task


async def test_the_queue_is_bounded(pool: Pool) -> None:
    """Connections beyond those that may wait are refused at once; those that wait get theirs, a few at a time."""
    pool.remote.gate.clear()
    most = MAX_CONNECTING + MAX_WAITING
    waiting = [asyncio.create_task(pool.do(f"u{number}")) for number in range(most)]
    await turn_until(lambda: len(pool.remote.users) == MAX_STRANGERS and len(pool._connecting) == most)
    with pytest.raises(RemoteTimeoutError, match="busy"):
        await pool.do("one-more")
    joined = asyncio.create_task(pool.do("u7"))
    assert len(pool.remote.users) == MAX_STRANGERS
    pool.remote.gate.set()
    assert len(await asyncio.gather(joined, *waiting)) == most + 1
    assert len(pool.remote.users) == most
    await pool.do("one-more")


async def test_a_strangers_slow_connection_holds_up_no_warm_one(pool: Pool) -> None:
    """With every connector waiting for the remote, a warm connection still runs commands."""
    await pool.do()
    pool.remote.gate.clear()
    strangers = [asyncio.create_task(pool.do(f"u{number}")) for number in range(MAX_CONNECTING * 2)]
    await turn_until(lambda: len(pool.remote.users) == MAX_STRANGERS + 1)
    assert (await pool.do()).completed.stdout == b"ok"
    pool.remote.gate.set()
    await asyncio.gather(*strangers)


async def test_strangers_leave_room_for_users(pool: Pool) -> None:
    """With as many invented names waiting as may, a user's cold connection begins at once."""
    pool.remote.gate.clear()
    names = [f"u{number}" for number in range(MAX_CONNECTING + MAX_WAITING)]
    strangers = [asyncio.create_task(pool.do(name)) for name in names]
    await turn_until(lambda: len(pool._connecting) == len(names))
    user = asyncio.create_task(pool.do("alice"))
    await turn_until(lambda: pool.remote.users[-1:] == ["alice"])
    assert len(pool.remote.users) == MAX_STRANGERS + 1 <= MAX_CONNECTING
    pool.remote.gate.set()
    assert (await user).completed.stdout == b"ok"
    await asyncio.gather(*strangers)


async def test_a_command_that_cannot_be_written_leaves_no_trace(pool: Pool) -> None:
    """A fault while a line is made does not count as a command that runs: the connection still ages and goes."""

    def broken(address: str) -> str:
        raise ValueError(address)

    await pool.do()
    with pytest.raises(ValueError, match="192"):
        await pool.run("alice", broken, max_bytes=100)
    pool.clock.now_s += IDLE_S + 1
    pool.sweep()
    assert (pool.remote.made[0].alive, len(pool)) == (False, 0)


async def test_closing_ends_all(pool: Pool) -> None:
    """Every connection is closed at the end."""
    await pool.do("alice")
    await pool.do("bob")
    pool.close()
    assert not any(connection.alive for connection in pool.remote.made)
    assert len(pool) == 0


async def test_a_refusal_is_remembered_for_the_ttl(pool: Pool) -> None:
    """A refused user is not tried again within the TTL; other users are, and the same user after it."""
    pool.remote.error = PermissionDeniedError("no")
    for _ in range(3):
        with pytest.raises(PermissionDeniedError, match="no"):
            await pool.do()
    pool.warm_up("alice")
    with pytest.raises(PermissionDeniedError):
        pool.verdicts.check_refusal("alice")
    pool.verdicts.check_refusal("bob")
    pool.remote.error = None
    await pool.do("bob")
    assert pool.remote.users == ["alice", "bob"]
    pool.clock.now_s += 60.0
    await pool.do()
    pool.verdicts.check_refusal("alice")
    assert pool.remote.users == ["alice", "bob", "alice"]


async def _worked() -> CommandResult:
    return CommandResult(Completed(b"ok", b"", 0), "192.0.2.1", 0.0, 0.0)


async def _lost() -> CommandResult:
    msg = "lost"
    raise RemoteLostError(msg)


async def _denied() -> CommandResult:
    msg = "denied"
    raise PermissionDeniedError(msg)


@pytest.mark.parametrize(
    "order", [(_denied, _worked), (_worked, _denied), (_lost, _worked), (_worked, _lost), (_worked, _worked)]
)
async def test_of_two_attempts_the_one_that_works_counts(
    order: tuple[Callable[[], Coroutine[None, None, CommandResult]], ...],
) -> None:
    """A failure is none while a rival still may work, nor where it has worked at the same moment."""
    kept: list[set[asyncio.Task[CommandResult]]] = []
    for _ in range(50):  # a set has its members by their addresses: those of kept tasks come in both orders
        attempts = {asyncio.create_task(attempt()) for attempt in order}
        kept.append(attempts)
        assert (await _first(attempts)).completed.stdout == b"ok"
        for attempt in attempts:
            assert attempt.done()
            attempt.exception()


async def test_two_attempts_that_fail_are_a_failure() -> None:
    """When no attempt works, the error is raised."""
    attempts = {asyncio.create_task(_lost()) for _ in range(2)}
    with pytest.raises(RemoteLostError):
        await _first(attempts)
    assert all(attempt.exception() for attempt in attempts)
