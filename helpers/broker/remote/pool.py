"""The connection pool: one warm connection for each user, shared by the user's requests and closed when idle.

All of it runs on the event loop's thread, so nothing is locked. Blocking calls run in two thread pools, so that new
connections for strangers never delay commands over warm ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from helpers.broker.fair_share import FairShare
from helpers.broker.remote.attempt import Attempt
from helpers.broker.remote.circuit_breaker import CircuitBreaker
from helpers.broker.remote.verdicts import Verdicts
from helpers.protocol.deadlines import RUN_TIMEOUT_S, WARM_TIMEOUT_S
from helpers.protocol.errors import (
    GatewayError,
    NoCommonAlgorithmError,
    PermissionDeniedError,
    RemoteLostError,
    RemoteRefusedError,
    RemoteTimeoutError,
    RemoteUnresolvedError,
)

MAX_CONNECTING = 10
"""Connections under way at once: sshd's MaxStartups begins to drop unauthenticated ones at 10 (sshd_config(5))."""

MAX_STRANGERS = 7
"""How many of these may be for names that never had a session. A client that invents names faster than the remote
refuses them leaves the rest to users whose connection has been closed."""

MAX_WAITING = 200
"""Most connections that may wait for their turn; a stranger's is refused at once beyond that."""

MAX_RUNNING = 128
"""Most commands at once over warm connections. Each running command takes a thread of 51 kB (measured)."""

MAX_FOR_USER = 8
"""How many of these one user may have, and fewer while many are taken (`helpers.broker.fair_share`): users whose home
or shell hangs on the remote, on purpose or not, leave room for others. With two idle channels they are as many as sshd
allows over one connection (sshd_config(5), MaxSessions 10)."""

MAX_WARM = 512
"""Most connections that are kept; the one idle for longest is closed first. Each costs the broker about 0.1 MB."""

IDLE_S = 600.0
"""Seconds after which an unused connection is closed."""

STRANGER_IDLE_S = 60.0
"""The same for a connection without a session: a client that guesses users' names must not keep connections open."""

MAX_AGE_S = 3600.0
"""Seconds after which a connection is no longer used, so that the remote authenticates the gateway again."""

ACKNOWLEDGE_S = 0.5
"""Seconds, on top of the measured round trip, after which the remote's kernel must have acknowledged data on a warm
connection, and ours has retransmitted it: Linux waits for 0.2 s before it does either. A connection without an
acknowledgement may be dead, or busy with retransmissions; a new one is tried in parallel, and the first answer is
used."""

RIVAL_AFTER_S = 3.0
"""Seconds after which a second connection is tried if a new connection, or its first command, is not done and packets
have been lost: the remote's TCP doubles its timeout each time that the same packet is lost, and a second connection
starts over. At 100 ms RTT all are done within one second without loss, and 78 % within this time with 29 % loss each
way (measured)."""

RIVAL_STEP_S = 0.5
"""Seconds between later checks for lost packets."""


@dataclass(frozen=True)
class Completed:
    """The output and exit status of a command on the remote.

    Attributes:
        stdout: Its output, up to the point where reading stopped.
        stderr: Its standard error, 8 KiB at most.
        status: Its exit status; None if reading stopped early or the remote sent none.
        marker: The marker that begins each valid line of its output (`helpers.remote_command`).
    """

    stdout: bytes
    stderr: bytes
    status: int | None
    marker: bytes = field(default=b"", repr=False)


class RemoteConnection(Protocol):
    """The part of `helpers.broker.remote.connection.Connection` that the pool uses."""

    address: str
    interactive: bool

    @property
    def round_trip_s(self) -> float:
        """The longest likely time until an acknowledgement, in seconds."""
        ...

    @property
    def unacknowledged(self) -> bool:
        """Whether the remote's kernel has not yet acknowledged data that was retransmitted."""
        ...

    @property
    def lost_packets(self) -> bool:
        """Whether packets have been lost since the connection was made."""
        ...

    @property
    def alive(self) -> bool:
        """Whether the connection is up."""

    def close(self) -> None:
        """Close the connection."""

    def prepare(self, timeout_s: float) -> None:
        """Open a channel for the next command."""

    def run(
        self,
        command: str,
        *,
        max_bytes: int,
        timeout_s: float,
        until: Callable[[bytes], object] | None = None,
        ahead: bool = False,
    ) -> Completed:
        """Run a command."""


class NoRoomError(RemoteLostError):
    """The remote refuses another channel over a connection: MaxSessions (sshd_config(5))."""


class LoginLostError(RemoteLostError):
    """The remote closed the connection during a user's login, after its host key was verified."""


class LoginTimeoutError(RemoteTimeoutError):
    """The remote did not complete a user's login in time, after its host key was verified."""


Connect = Callable[[str, Callable[[str], str] | None, Attempt], RemoteConnection]
"""Makes a connection for a user name, begins a command, and updates the attempt."""


_T = TypeVar("_T")
_OUTAGES = (
    RemoteRefusedError,
    RemoteTimeoutError,
    RemoteLostError,
    RemoteUnresolvedError,
    NoCommonAlgorithmError,  # not an outage, but it affects every user
)


@dataclass
class PooledConnection:
    """A connection in the pool.

    Attributes:
        connection: The connection.
        opened_s: Time of its creation, on the pool's clock.
        used_s: Time of its last use.
        users: How many commands run over it now, or wait for their turn.
        had_session: Whether its user has started a session since it was made.
        retired: Whether it was removed from the pool; it is closed after its last command.
        preparing: Whether its next channel is being opened.
        kills_processes: Whether the remote's logind ends a session's processes with the session; None before the
            remote was asked (`helpers.broker.remote.logind`).
    """

    connection: RemoteConnection
    opened_s: float
    used_s: float
    users: int = 0
    had_session: bool = False
    retired: bool = False
    preparing: bool = False
    kills_processes: bool | None = None


@dataclass(frozen=True)
class CommandResult:
    """The result of a command, and its timing.

    Attributes:
        completed: Its output and exit status.
        address: The remote's numeric address.
        connect_ms: Milliseconds spent on a new connection; 0 over a warm one.
        run_ms: Milliseconds from sending the command to its end.
    """

    completed: Completed
    address: str
    connect_ms: float
    run_ms: float


class Connections:
    """The pool.

    Args:
        connect: Makes a connection for a user name, and begins a command (see
            `helpers.broker.remote.connection.Remote.connect`); blocks; raises `GatewayError`.
        clock: Seconds, monotonic.
        known: Returns whether a user name ever had a session.
        verdicts: The cache of failures of users; None for a cache of its own.
    """

    def __init__(
        self,
        connect: Connect,
        clock: Callable[[], float] = time.monotonic,
        known: Callable[[str], bool] = lambda _: False,
        verdicts: Verdicts | None = None,
    ) -> None:
        self._connect, self._clock, self._known = connect, clock, known
        self.verdicts = verdicts or Verdicts(clock=clock)
        self._breaker = CircuitBreaker(clock)
        self._warm: dict[str, PooledConnection] = {}
        self._connecting: dict[str, asyncio.Task[PooledConnection]] = {}
        self._turns = asyncio.Semaphore(MAX_CONNECTING)
        self._strangers = asyncio.Semaphore(MAX_STRANGERS)
        self._connectors = ThreadPoolExecutor(MAX_CONNECTING, "connect")
        self._runners = ThreadPoolExecutor(MAX_RUNNING, "run")
        self._places = FairShare(MAX_RUNNING, MAX_FOR_USER)
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Count the live connections in the pool."""
        return sum(warm.connection.alive for warm in self._warm.values())

    async def run(
        self,
        user: str,
        command: Callable[[str], str],
        *,
        max_bytes: int,
        until: Callable[[bytes], object] | None = None,
    ) -> CommandResult:
        """Run a command as a user, over the user's warm connection if there is a live one.

        A dead connection is replaced once; if one does not answer, a second one is tried in parallel.

        Args:
            user: A valid user name.
            command: Returns the command line for the remote's numeric address.
            max_bytes: Most output, in bytes, that is read.
            until: Called with the text behind the marker in each line that has it; reading stops once it returns
                something other than None.

        Raises:
            GatewayError: The remote cannot be reached, or does not answer.
        """
        warm = self._usable(user)
        if warm is None:
            attempts = {asyncio.create_task(self._run_cold(user, command, max_bytes, until))}
        else:
            attempts = {asyncio.create_task(self._run(user, warm, command, max_bytes=max_bytes, until=until))}
        try:
            if warm is None:
                done = await _is_done_or_losing(attempts, lambda: self._is_losing(user))
            else:
                done = await _is_done(attempts, warm.connection)
            if not done:
                attempts.add(asyncio.create_task(self._run_cold(user, command, max_bytes, until)))
            return await _first(attempts)
        except (RemoteLostError, RemoteTimeoutError):
            if warm is None or len(attempts) > 1:
                raise
            self.forget(user, warm.connection)
        finally:
            # An attempt that still waits for its turn is no longer needed.
            for attempt in attempts:
                attempt.add_done_callback(_retrieve_exception)
                attempt.cancel()
        return await self._run_cold(user, command, max_bytes, until)

    def _is_losing(self, user: str) -> bool:
        """Check whether a user's connection was made more than `RIVAL_AFTER_S` ago, and has lost packets."""
        warm = self._warm.get(user)
        return warm is not None and self._clock() - warm.opened_s >= RIVAL_AFTER_S and warm.connection.lost_packets

    async def _run_cold(
        self, user: str, command: Callable[[str], str], max_bytes: int, until: Callable[[bytes], object] | None
    ) -> CommandResult:
        """Run a command over a new connection, which replaces the old one."""
        began = self._clock()
        while True:
            warm, is_own = await self._new(user, command)
            connect_ms = (self._clock() - began) * 1000
            try:
                ran = await self._run(user, warm, command, max_bytes=max_bytes, until=until)
            except NoRoomError:
                # Of the requests that share a new connection one gets a channel, but not always the one that made it.
                if is_own and not warm.users:
                    raise
                self.forget(user, warm.connection)
            else:
                return replace(ran, connect_ms=connect_ms)

    async def run_in_background(self, user: str, command: str, *, max_bytes: int) -> Completed | None:
        """Run a command over a user's warm connection in the background, without extending its lifetime.

        Args:
            user: A valid user name.
            command: The command line.
            max_bytes: Most output, in bytes, that is read.

        Returns:
            The result; None if there is no warm connection, or the command failed. The next request handles that.
        """
        warm = self._usable(user)
        if warm is None or not self._places.has_room(user):
            return None
        try:
            ran = await self._run(user, warm, lambda _: command, max_bytes=max_bytes, until=None, ahead=True)
        except GatewayError:
            return None
        return ran.completed

    def recent_users(self, most: int) -> list[str]:
        """List users who have recently had a session, and so will probably log in again.

        Args:
            most: How many at most; the most recent ones.
        """
        now = self._clock()
        likely = [user for user, warm in self._warm.items() if warm.had_session and now - warm.used_s <= IDLE_S]
        return likely[-most:]

    def warm_up(self, user: str) -> None:
        """Start to connect for a login that is about to need it; a failure is reported to the request that needs it."""
        if self._usable(user) is None:
            self._later(self._warm_up(user))

    def forget(self, user: str, connection: RemoteConnection | None = None) -> None:
        """Close a user's connection, or only this one, so that the next use authenticates again."""
        warm = self._warm.get(user)
        if warm is not None and connection in (None, warm.connection):
            del self._warm[user]
            warm.retired = True
            if not warm.users:
                warm.connection.close()

    def note_session(self, user: str) -> None:
        """Record that a user has a session, and so will probably log in again."""
        warm = self._warm.get(user)
        if warm is not None:
            warm.had_session = True

    @contextmanager
    def held(self, user: str) -> Iterator[PooledConnection | None]:
        """Keep a user's connection open within the context, even if it is idle; None if there is none."""
        warm = self._warm.get(user)
        if warm is None:
            yield None
            return
        warm.users += 1
        try:
            yield warm
        finally:
            _release(warm)

    def connection(self, user: str) -> RemoteConnection | None:
        """Return a user's connection if it is alive and acknowledges; None otherwise."""
        warm = self._usable(user)
        return None if warm is None or warm.connection.unacknowledged else warm.connection

    def age_s(self, user: str) -> float | None:
        """Return for how many seconds a user's connection has been open; None if there is none."""
        warm = self._warm.get(user)
        return None if warm is None else self._clock() - warm.opened_s

    def sweep(self) -> None:
        """Close connections that are idle, old or dead; called periodically."""
        now = self._clock()
        for user, warm in list(self._warm.items()):
            idle_s = IDLE_S if warm.had_session else STRANGER_IDLE_S
            idle = not warm.users and (now - warm.used_s > idle_s or now - warm.opened_s > MAX_AGE_S)
            if idle or not warm.connection.alive:
                self.forget(user)

    def close(self) -> None:
        """Close all connections and stop the threads."""
        for warm in self._warm.values():
            warm.connection.close()
        self._warm.clear()
        self._connectors.shutdown(wait=False, cancel_futures=True)
        self._runners.shutdown(wait=False, cancel_futures=True)

    def _usable(self, user: str) -> PooledConnection | None:
        warm = self._warm.get(user)
        if warm is None:
            return None
        if warm.connection.alive and self._clock() - warm.opened_s <= MAX_AGE_S:
            return warm
        self.forget(user)
        return None

    async def _run(
        self,
        user: str,
        warm: PooledConnection,
        command: Callable[[str], str],
        *,
        max_bytes: int,
        until: Callable[[bytes], object] | None,
        ahead: bool = False,
    ) -> CommandResult:
        line = command(warm.connection.address)
        began = self._clock()
        if not ahead:
            warm.used_s = began
        warm.users += 1

        def run() -> Completed:
            return warm.connection.run(line, max_bytes=max_bytes, timeout_s=RUN_TIMEOUT_S, until=until, ahead=ahead)

        try:
            await self._places.take(user)
            completed = await self._in_place(user, run)
        finally:
            _release(warm)
        ended = self._clock()
        if not warm.retired and not warm.preparing:
            self._later(self._prepare(user, warm))
        if not ahead:
            warm.used_s = ended
            # The dict's order is the order of use, oldest first.
            if self._warm.get(user) is warm:
                self._warm[user] = self._warm.pop(user)
        return CommandResult(completed, warm.connection.address, 0.0, (ended - began) * 1000)

    async def _warm_up(self, user: str) -> None:
        await self._new(user, None)

    def _in_place(self, user: str, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """Run a blocking call in a thread. The user holds a place until it ends, even if the caller is cancelled.

        Raises:
            RuntimeError: No thread can be started, for example at a limit of processes.
        """
        try:
            running = asyncio.get_running_loop().run_in_executor(self._runners, work)
        except RuntimeError:
            self._places.release(user)
            raise
        running.add_done_callback(_retrieve_exception)
        running.add_done_callback(lambda _: self._places.release(user))
        return asyncio.shield(running)

    async def _prepare(self, user: str, warm: PooledConnection) -> None:
        if not self._places.has_room(user):
            return  # the next command opens a channel for itself
        warm.preparing = True
        try:
            await self._places.take(user)
            await self._in_place(user, lambda: warm.connection.prepare(RUN_TIMEOUT_S))
        finally:
            warm.preparing = False

    async def _new(self, user: str, command: Callable[[str], str] | None) -> tuple[PooledConnection, bool]:
        """Connect, once for all concurrent requests; the first one's command is begun.

        Returns:
            The connection, and whether it was made for this request.
        """
        task = self._connecting.get(user)
        is_own = task is None
        if task is None:
            self.verdicts.check_refusal(user)
            known = self._known(user)
            if not known and len(self._connecting) >= MAX_CONNECTING + MAX_WAITING:
                msg = "the gateway is busy with other logins; try again in a moment"
                raise RemoteTimeoutError(msg)
            task = asyncio.create_task(self._add(user, command, known=known))
            self._connecting[user] = task
            task.add_done_callback(lambda _: self._connecting.pop(user, None))
        # A cancelled request must not cancel the connection of the others.
        return await asyncio.shield(task), is_own

    async def _add(self, user: str, command: Callable[[str], str] | None, *, known: bool) -> PooledConnection:
        """Connect; if it takes long and packets are lost, try a second connection, and use the first that is made."""
        first, rival = Attempt(), Attempt()
        tasks = {asyncio.create_task(self._attempt(user, command, first, rival, known=known))}
        try:
            if not await _is_done_or_losing(tasks, lambda: first.is_losing(RIVAL_AFTER_S)):
                tasks.add(asyncio.create_task(self._attempt(user, command, rival, first, known=known)))
            return await _first(tasks)
        finally:
            for task in tasks:
                task.add_done_callback(_retrieve_exception)

    async def _attempt(
        self, user: str, command: Callable[[str], str] | None, attempt: Attempt, other: Attempt, *, known: bool
    ) -> PooledConnection:
        # The breaker is checked after the wait for a turn: the remote may have gone down meanwhile.
        async with nullcontext() if known else self._strangers, self._turns:
            attempt.check()
            self._breaker.check()
            loop = asyncio.get_running_loop()
            try:
                connection = await loop.run_in_executor(self._connectors, self._connect, user, command, attempt)
            except GatewayError as error:
                attempt.check()
                if isinstance(error, _OUTAGES) and not isinstance(error, LoginLostError | LoginTimeoutError):
                    self._breaker.failed(error)
                else:
                    self._breaker.worked()
                if isinstance(error, PermissionDeniedError):
                    self.verdicts.note(user, error)
                    other.give_up()
                raise
            if attempt.given_up:
                connection.close()
                attempt.check()
            attempt.succeeded()
            # Before the turn is released, for which the other attempt may be waiting.
            other.give_up()
            self._breaker.worked()
        return self._enter(user, connection)

    def _enter(self, user: str, connection: RemoteConnection) -> PooledConnection:
        """Add a new connection to the pool, in place of the user's old one."""
        self.verdicts.clear(user)
        now = self._clock()
        warm = PooledConnection(connection, now, now)
        self.forget(user)
        self._warm[user] = warm
        if len(self._warm) > MAX_WARM:
            idle = next((name for name, other in self._warm.items() if not other.users and other is not warm), None)
            if idle is not None:
                self.forget(idle)
        return warm

    def _later(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_retrieve_exception)


def _release(warm: PooledConnection) -> None:
    warm.users -= 1
    if warm.retired and not warm.users:
        warm.connection.close()


async def _is_done(attempts: set[asyncio.Task[CommandResult]], connection: RemoteConnection) -> bool:
    """Wait for an attempt, longer if its connection acknowledges, and return whether it is done."""
    patience_s = min(WARM_TIMEOUT_S, connection.round_trip_s + ACKNOWLEDGE_S)
    done, _ = await asyncio.wait(attempts, timeout=patience_s)
    if not done and not connection.unacknowledged:
        done, _ = await asyncio.wait(attempts, timeout=WARM_TIMEOUT_S - patience_s)
    return bool(done)


async def _is_done_or_losing(attempts: set[asyncio.Task[_T]], is_losing: Callable[[], bool]) -> bool:
    """Wait until an attempt is done, or takes long and has lost packets; return whether it is done."""
    done, _ = await asyncio.wait(attempts, timeout=RIVAL_AFTER_S)
    while not done and not is_losing():
        done, _ = await asyncio.wait(attempts, timeout=RIVAL_STEP_S)
    return bool(done)


async def _first(attempts: set[asyncio.Task[_T]]) -> _T:
    """Wait for the first attempt that succeeds or is refused; if there is none, raise the last one's error."""
    while True:
        done, attempts = await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED)
        worked = [attempt for attempt in done if attempt.exception() is None]
        answers = worked or [attempt for attempt in done if isinstance(attempt.exception(), PermissionDeniedError)]
        if answers or not attempts:
            return (answers or list(done))[0].result()


def _retrieve_exception(done: asyncio.Future[Any]) -> None:
    """Retrieve a task's exception, so that asyncio does not log it as unhandled."""
    if not done.cancelled():
        done.exception()
