"""The warm connections: one per user, shared by all that is done for that user, and closed when idle.

Everything here runs on the event loop's thread, so nothing is locked; what blocks runs in two pools of threads, so
that strangers' cold logins never hold up those of users who are already known.
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
"""How many of these may be for names that never had a session: whoever invents names faster than the remote refuses
them leaves room for users whose connection has gone cold."""

MAX_WAITING = 200
"""Connections that may wait for their turn; a stranger's beyond that is refused at once."""

MAX_RUNNING = 128
"""Commands under way at once over warm connections. Each that runs takes a thread, of 51 kB (measured)."""

MAX_FOR_USER = 8
"""How many of these may be one user's, and fewer while many are taken (`helpers.broker.fair_share`): users whose home
or shell hangs on the remote, or is made to, leave room for others. With two more, which nobody runs yet, they are as
many as sshd has over one connection (sshd_config(5), MaxSessions 10)."""

MAX_WARM = 512
"""Connections kept; the one that was idle longest makes room. Each costs the broker about 0.1 MB."""

IDLE_S = 600.0
"""Seconds after which an unused connection is closed."""

STRANGER_IDLE_S = 60.0
"""The same for one over which no session ever began: whoever knows names of users must not hold the remote open."""

MAX_AGE_S = 3600.0
"""Seconds after which a connection is no longer used, so that the remote decides anew who may log in."""

ACKNOWLEDGE_S = 0.5
"""Seconds, on top of the round trip that was measured, after which the remote's kernel must have acknowledged what was
sent over a warm connection, and ours has sent it again: Linux waits for 0.2 s before it does either. A connection on
which it has not may have died, or be busy repeating what the network lost; a new one is tried beside it, and whichever
answers first is as good."""

RIVAL_AFTER_S = 3.0
"""Seconds after which a new connection, or the first command over it, gets a rival where packets have been lost: the
remote's TCP waits twice as long each time that the same packet is lost again, and a second connection begins anew. At
100 ms RTT all are done within one second where nothing is lost, and 78 % within these where 29 % is, each way
(measured)."""

RIVAL_STEP_S = 0.5
"""Seconds between looks, after that, at whether packets have been lost."""


@dataclass(frozen=True)
class Completed:
    """What a command on the remote did.

    Attributes:
        stdout: Its output, or, where reading stopped early, what had come.
        stderr: What it wrote to standard error, 8 KiB at most.
        status: Its exit status; None when reading stopped early or the remote told none.
        marker: The command's marker, by which lines of its output count (`helpers.remote_command`).
    """

    stdout: bytes
    stderr: bytes
    status: int | None
    marker: bytes = field(default=b"", repr=False)


class RemoteConnection(Protocol):
    """What is needed of `helpers.broker.remote.connection.Connection`."""

    address: str
    interactive: bool

    @property
    def round_trip_s(self) -> float:
        """How long an acknowledgement takes at the worst that is likely."""
        ...

    @property
    def unacknowledged(self) -> bool:
        """Whether the remote's kernel has still to acknowledge what was sent twice."""
        ...

    @property
    def loses(self) -> bool:
        """Whether packets have been lost since it was made."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it is up."""

    def close(self) -> None:
        """Hang up."""

    def prepare(self, timeout_s: float) -> None:
        """Have a channel ready for the next command."""

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
    """The remote has no room for another command over a connection: MaxSessions (sshd_config(5))."""


class LoginLostError(RemoteLostError):
    """The remote, which is there, broke off the login of one user."""


class LoginTimeoutError(RemoteTimeoutError):
    """The remote, which is there, did not finish the login of one user in time."""


Connect = Callable[[str, Callable[[str], str] | None, Attempt], RemoteConnection]
"""Makes a connection for a user name, begins a command, and tells the attempt how it goes."""


_T = TypeVar("_T")
_OUTAGES = (
    RemoteRefusedError,
    RemoteTimeoutError,
    RemoteLostError,
    RemoteUnresolvedError,
    NoCommonAlgorithmError,  # no outage, but the same for every user
)


@dataclass
class Warm:
    """A connection in the pool.

    Attributes:
        connection: The connection.
        opened_s: When it was made, on the pool's clock.
        used_s: When it was last used.
        users: How many commands run over it now, or wait for their turn.
        kept: Whether its user had a session since it was made.
        retired: Whether it is out of the pool, and closed after its last command.
        preparing: Whether its next channel is being opened.
        kills_processes: Whether logind on the remote ends what a session has started with the session; None where the
            remote has not been asked (`helpers.broker.remote.logind`).
    """

    connection: RemoteConnection
    opened_s: float
    used_s: float
    users: int = 0
    kept: bool = False
    retired: bool = False
    preparing: bool = False
    kills_processes: bool | None = None


@dataclass(frozen=True)
class Ran:
    """A command that ran.

    Attributes:
        completed: What it did.
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
        known: Tells whether a user name ever had a session.
        verdicts: What is remembered of users whom the remote did not let in; None for a memory of its own.
    """

    def __init__(
        self,
        connect: Connect,
        clock: Callable[[], float] = time.monotonic,
        known: Callable[[str], bool] = lambda _: False,
        verdicts: Verdicts | None = None,
    ) -> None:
        """Start with no connection."""
        self._connect, self._clock, self._known = connect, clock, known
        self.verdicts = verdicts or Verdicts(clock=clock)
        self._breaker = CircuitBreaker(clock)
        self._warm: dict[str, Warm] = {}
        self._connecting: dict[str, asyncio.Task[Warm]] = {}
        self._turns = asyncio.Semaphore(MAX_CONNECTING)
        self._strangers = asyncio.Semaphore(MAX_STRANGERS)
        self._connectors = ThreadPoolExecutor(MAX_CONNECTING, "connect")
        self._runners = ThreadPoolExecutor(MAX_RUNNING, "run")
        self._places = FairShare(MAX_RUNNING, MAX_FOR_USER)
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Count the connections that are kept and alive."""
        return sum(warm.connection.alive for warm in self._warm.values())

    async def run(
        self,
        user: str,
        command: Callable[[str], str],
        *,
        max_bytes: int,
        until: Callable[[bytes], object] | None = None,
    ) -> Ran:
        """Run a command as a user, over the user's warm connection if there is a live one.

        A connection that turns out to be dead is replaced once; one that stays silent gets a rival.

        Args:
            user: A valid user name.
            command: Writes the command line, given the remote's numeric address.
            max_bytes: Most output, in bytes, that is read.
            until: Called with what stands behind the marker in each line that has it; once it answers other than None,
                reading stops.

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
                done = await _is_done_or_unlucky(attempts, lambda: self._is_unlucky(user))
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
            # Nobody waits any more for one that has not had its turn yet.
            for attempt in attempts:
                attempt.add_done_callback(_observe)
                attempt.cancel()
        return await self._run_cold(user, command, max_bytes, until)

    def _is_unlucky(self, user: str) -> bool:
        """Tell whether a user's connection was made a while ago, and has lost packets."""
        warm = self._warm.get(user)
        return warm is not None and self._clock() - warm.opened_s >= RIVAL_AFTER_S and warm.connection.loses

    async def _run_cold(
        self, user: str, command: Callable[[str], str], max_bytes: int, until: Callable[[bytes], object] | None
    ) -> Ran:
        """Run a command over a new connection, which takes the place of the old one."""
        began = self._clock()
        while True:
            warm, is_own = await self._new(user, command)
            connect_ms = (self._clock() - began) * 1000
            try:
                ran = await self._run(user, warm, command, max_bytes=max_bytes, until=until)
            except NoRoomError:
                # Of those who share a new connection one has room, who need not be the one for whom it was made.
                if is_own and not warm.users:
                    raise
                self.forget(user, warm.connection)
            else:
                return replace(ran, connect_ms=connect_ms)

    async def run_unused(self, user: str, command: str, *, max_bytes: int) -> Completed | None:
        """Run a command over a user's warm connection on the gateway's own behalf, which keeps no connection longer.

        Args:
            user: A valid user name.
            command: The command line.
            max_bytes: Most output, in bytes, that is read.

        Returns:
            What it did; None where there is no such connection, or it did not work, which its next user will see to.
        """
        warm = self._usable(user)
        if warm is None or not self._places.has_room(user):
            return None
        try:
            ran = await self._run(user, warm, lambda _: command, max_bytes=max_bytes, until=None, ahead=True)
        except GatewayError:
            return None
        return ran.completed

    def expected(self, most: int) -> list[str]:
        """List the users who will probably be back: had a session since they are connected, and not too long ago.

        Args:
            most: How many at most; those who were here last.
        """
        now = self._clock()
        likely = [user for user, warm in self._warm.items() if warm.kept and now - warm.used_s <= IDLE_S]
        return likely[-most:]

    def warm_up(self, user: str) -> None:
        """Start to connect for a login that is about to need it; whoever needs it then hears of a failure."""
        if self._usable(user) is None:
            self._later(self._warm_up(user))

    def forget(self, user: str, connection: RemoteConnection | None = None) -> None:
        """Close a user's connection, or only this one, so that the next use proves itself anew."""
        warm = self._warm.get(user)
        if warm is not None and connection in (None, warm.connection):
            del self._warm[user]
            warm.retired = True
            if not warm.users:
                warm.connection.close()

    def keep(self, user: str) -> None:
        """Note that a user has a session, and will probably be back."""
        warm = self._warm.get(user)
        if warm is not None:
            warm.kept = True

    @contextmanager
    def held(self, user: str) -> Iterator[Warm | None]:
        """Keep a user's connection open meanwhile, also where it is used no more; None where there is none."""
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
        """Return a user's connection, as far as it is known to work; None where there is none."""
        warm = self._usable(user)
        return None if warm is None or warm.connection.unacknowledged else warm.connection

    def age_s(self, user: str) -> float | None:
        """Tell for how many seconds a user's connection has been open; None where there is none."""
        warm = self._warm.get(user)
        return None if warm is None else self._clock() - warm.opened_s

    def sweep(self) -> None:
        """Close what is idle, old or dead; called every now and then."""
        now = self._clock()
        for user, warm in list(self._warm.items()):
            idle_s = IDLE_S if warm.kept else STRANGER_IDLE_S
            idle = not warm.users and (now - warm.used_s > idle_s or now - warm.opened_s > MAX_AGE_S)
            if idle or not warm.connection.alive:
                self.forget(user)

    def close(self) -> None:
        """Close everything."""
        for warm in self._warm.values():
            warm.connection.close()
        self._warm.clear()
        self._connectors.shutdown(wait=False, cancel_futures=True)
        self._runners.shutdown(wait=False, cancel_futures=True)

    def _usable(self, user: str) -> Warm | None:
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
        warm: Warm,
        command: Callable[[str], str],
        *,
        max_bytes: int,
        until: Callable[[bytes], object] | None,
        ahead: bool = False,
    ) -> Ran:
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
        return Ran(completed, warm.connection.address, 0.0, (ended - began) * 1000)

    async def _warm_up(self, user: str) -> None:
        await self._new(user, None)

    def _in_place(self, user: str, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """Do what blocks, in a place that the user holds, until it ends: an asker who leaves does not end it.

        Raises:
            RuntimeError: No thread can be started, as at a limit of processes.
        """
        try:
            running = asyncio.get_running_loop().run_in_executor(self._runners, work)
        except RuntimeError:
            self._places.release(user)
            raise
        running.add_done_callback(_observe)
        running.add_done_callback(lambda _: self._places.release(user))
        return asyncio.shield(running)

    async def _prepare(self, user: str, warm: Warm) -> None:
        if not self._places.has_room(user):
            return  # the next command opens a channel for itself
        warm.preparing = True
        try:
            await self._places.take(user)
            await self._in_place(user, lambda: warm.connection.prepare(RUN_TIMEOUT_S))
        finally:
            warm.preparing = False

    async def _new(self, user: str, command: Callable[[str], str] | None) -> tuple[Warm, bool]:
        """Connect, once for all who ask at the same time; the first one's command is begun.

        Returns:
            The connection, and whether it was made for this asker.
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
        # An asker who leaves must not take the connection from the others.
        return await asyncio.shield(task), is_own

    async def _add(self, user: str, command: Callable[[str], str] | None, *, known: bool) -> Warm:
        """Connect; where packets are lost, and it takes long, twice: the one that is made first counts."""
        first, rival = Attempt(), Attempt()
        tasks = {asyncio.create_task(self._attempt(user, command, first, rival, known=known))}
        try:
            if not await _is_done_or_unlucky(tasks, lambda: first.is_unlucky(RIVAL_AFTER_S)):
                tasks.add(asyncio.create_task(self._attempt(user, command, rival, first, known=known)))
            return await _first(tasks)
        finally:
            for task in tasks:
                task.add_done_callback(_observe)

    async def _attempt(
        self, user: str, command: Callable[[str], str] | None, attempt: Attempt, other: Attempt, *, known: bool
    ) -> Warm:
        # Whoever waited for a turn while the remote went down spares it the try.
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
            # Before this turn is free, which the other one may be waiting for.
            other.give_up()
            self._breaker.worked()
        return self._enter(user, connection)

    def _enter(self, user: str, connection: RemoteConnection) -> Warm:
        """Take a new connection into the pool, in the place of the user's old one."""
        self.verdicts.clear(user)
        now = self._clock()
        warm = Warm(connection, now, now)
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
        task.add_done_callback(_observe)


def _release(warm: Warm) -> None:
    warm.users -= 1
    if warm.retired and not warm.users:
        warm.connection.close()


async def _is_done(attempts: set[asyncio.Task[Ran]], connection: RemoteConnection) -> bool:
    """Wait for an attempt for as long as its connection deserves, and tell whether it is done."""
    patience_s = min(WARM_TIMEOUT_S, connection.round_trip_s + ACKNOWLEDGE_S)
    done, _ = await asyncio.wait(attempts, timeout=patience_s)
    if not done and not connection.unacknowledged:
        done, _ = await asyncio.wait(attempts, timeout=WARM_TIMEOUT_S - patience_s)
    return bool(done)


async def _is_done_or_unlucky(attempts: set[asyncio.Task[_T]], is_unlucky: Callable[[], bool]) -> bool:
    """Wait for an attempt until it is done, or takes long and is unlucky, and tell whether it is done."""
    done, _ = await asyncio.wait(attempts, timeout=RIVAL_AFTER_S)
    while not done and not is_unlucky():
        done, _ = await asyncio.wait(attempts, timeout=RIVAL_STEP_S)
    return bool(done)


async def _first(attempts: set[asyncio.Task[_T]]) -> _T:
    """Wait for the first attempt that works, or is refused; where there is none, raise what the last one says."""
    while True:
        done, attempts = await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED)
        worked = [attempt for attempt in done if attempt.exception() is None]
        answers = worked or [attempt for attempt in done if isinstance(attempt.exception(), PermissionDeniedError)]
        if answers or not attempts:
            return (answers or list(done))[0].result()


def _observe(done: asyncio.Future[Any]) -> None:
    """Take note of how a task ended that may have nobody left to tell."""
    if not done.cancelled():
        done.exception()
