"""Sources of authorized_keys: one fetch serves many askers, and its result holds for the TTL and no longer."""

from __future__ import annotations

import asyncio
import base64
import gc
import os
import socket
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.broker.keys.cached_remote_keys import (
    REFRESHED_AFTER,
    REFRESHED_TTL_S,
    REFRESHED_USERS,
    RemoteKeys,
)
from helpers.broker.keys.key_file import KeyFile
from helpers.broker.keys.key_index import MAX_CONTENT_BYTES
from helpers.broker.keys.local_keys import ContentKeys, PathKeys
from helpers.broker.keys.remote_authorized_keys import MAX_OUTPUT_BYTES, AuthorizedKeysSources
from helpers.broker.keys.sources import AnyKeySource, LocalKeySource
from helpers.broker.privileged_client import PrivilegedClient
from helpers.broker.remote.pool import CommandResult, Completed
from helpers.broker.remote.verdicts import OUTAGE_TTL_S
from helpers.protocol.errors import (
    GatewayError,
    HostKeyError,
    PermissionDeniedError,
    RemoteLostError,
    RemoteTimeoutError,
)
from helpers.ssh.authorized_keys import parse_offered_key
from lab.answers import MARKER, authorized_keys
from lab.fakes import ManualClock

pytestmark = pytest.mark.timeout(20)

_OWN_KEY = b"AAAAgateway"
_FILE = b"ssh-ed25519 AAAAalice\nssh-ed25519 AAAAgateway\n"
_SOURCES = AuthorizedKeysSources()
_TTL_S = 60.0

_KEY = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)).decode()


class FakePool:
    """A remote that answers what a test says, over connections that are warm from the second command on.

    Attributes:
        outcomes: For each command, the file, the exit status or the error; the last one repeats.
        fetches: The users for whom a command ran, in order.
        forgotten: The users whose connection was given up, in order.
        likely: The users who will probably be back.
        gate: Commands wait for it.
        alter: Changes the result of a command before the pool returns it.
    """

    def __init__(self, clock: ManualClock, *outcomes: bytes | int | GatewayError) -> None:
        """Begin with no connection."""
        self._clock, self.outcomes = clock, list(outcomes)
        self._opened_s: dict[str, float] = {}
        self.fetches: list[str] = []
        self.forgotten: list[str] = []
        self.likely: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.alter: Callable[[CommandResult], CommandResult] = lambda ran: ran

    async def run_in_background(self, user: str, command: str, *, max_bytes: int) -> Completed | None:
        """Answer the next outcome; a status below zero is a connection that does not work."""
        completed = (await self.run(user, lambda _: command, max_bytes=max_bytes)).completed
        return None if completed.status == -1 else completed

    def recent_users(self, most: int) -> list[str]:
        """List the users whom the test expects."""
        return self.likely[-most:]

    async def run(
        self,
        user: str,
        command: Callable[[str], str],
        *,
        max_bytes: int,
        until: Callable[[bytes], object] | None = None,
    ) -> CommandResult:
        """Answer the next outcome."""
        assert (command("192.0.2.1"), max_bytes, until) == (_SOURCES.command_line(user), MAX_OUTPUT_BYTES, None)
        self.fetches.append(user)
        await self.gate.wait()
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, GatewayError):
            raise outcome
        cold = user not in self._opened_s
        self._opened_s.setdefault(user, self._clock())
        said, status = (b"", outcome) if isinstance(outcome, int) else (authorized_keys(outcome, None), 0)
        completed = Completed(said, b"", status, MARKER)
        return self.alter(CommandResult(completed, "192.0.2.1", 100.0 if cold else 0.0, 10.0))

    def forget(self, user: str) -> None:
        """Give a connection up."""
        self.forgotten.append(user)
        self._opened_s.pop(user, None)

    def age_s(self, user: str) -> float | None:
        """Tell a connection's age."""
        return None if user not in self._opened_s else self._clock() - self._opened_s[user]


def _keys(*outcomes: bytes | int | GatewayError, ttl_s: float = _TTL_S) -> tuple[RemoteKeys, FakePool, ManualClock]:
    clock = ManualClock()
    pool = FakePool(clock, *outcomes)
    return RemoteKeys(pool, ttl_s, _OWN_KEY, _SOURCES, clock=clock), pool, clock


async def _refused(keys: RemoteKeys, user: str = "alice") -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await keys.read(user)
    return caught.value


async def _turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_file_is_fetched_and_then_remembered() -> None:
    """The second asker within the TTL costs no packet; at the TTL the remote is asked again."""
    keys, pool, clock = _keys(_FILE)
    assert await keys.read("alice") == KeyFile(_FILE, "remote", 110.0)
    clock.now_s += _TTL_S - 0.1
    assert await keys.read("alice") == KeyFile(_FILE, "remote", 0.0)
    assert pool.fetches == ["alice"]
    clock.now_s += 0.1
    assert await keys.read("alice") == KeyFile(_FILE, "remote", 10.0)
    assert pool.fetches == ["alice", "alice"]


async def test_a_change_is_seen_after_the_ttl() -> None:
    """A key that was added, or taken away, counts after the TTL at the latest."""
    keys, _, clock = _keys(_FILE, _FILE + b"new\n")
    assert (await keys.read("alice")).content == _FILE
    clock.now_s += _TTL_S
    assert (await keys.read("alice")).content == _FILE + b"new\n"


async def test_the_ttl_begins_with_the_reading() -> None:
    """A change while a slow remote reads the file may be missing from the answer: it, too, counts after the TTL."""
    slow_s = 8.0

    keys, pool, clock = _keys(_FILE)

    def slowly(ran: CommandResult) -> CommandResult:
        clock.now_s += slow_s
        return replace(ran, run_ms=slow_s * 1000)

    pool.alter = slowly
    file = await keys.read("alice")
    assert keys.left_s(file) == pytest.approx(_TTL_S - slow_s)
    clock.now_s += _TTL_S - slow_s - 0.1
    await keys.read("alice")
    assert len(pool.fetches) == 1
    clock.now_s += 0.2
    await keys.read("alice")
    assert len(pool.fetches) == 2

    pool.likely = ["alice"]
    clock.now_s += _TTL_S - slow_s - 1
    await keys.refresh()
    clock.now_s += _TTL_S - slow_s - 0.1
    await keys.read("alice")
    assert len(pool.fetches) == 3
    clock.now_s += 0.2
    await keys.read("alice")
    assert len(pool.fetches) == 4


async def test_users_do_not_share_files() -> None:
    """Each user's file is that user's alone."""
    keys, pool, _ = _keys(b"alice's", b"bob's")
    assert [(await keys.read(user)).content for user in ("alice", "bob", "alice")] == [
        b"alice's",
        b"bob's",
        b"alice's",
    ]
    assert pool.fetches == ["alice", "bob"]


async def test_many_askers_share_one_fetch() -> None:
    """All who ask while a fetch is under way get its answer; the prefetch of the lookup is one."""
    keys, pool, _ = _keys(_FILE)
    pool.gate.clear()
    keys.prefetch("alice")
    askers = [asyncio.create_task(keys.read("alice")) for _ in range(50)]
    await _turns()
    keys.prefetch("alice")
    pool.gate.set()
    assert {file.content for file in await asyncio.gather(*askers)} == {_FILE}
    assert pool.fetches == ["alice"]
    keys.prefetch("alice")
    await _turns()
    assert pool.fetches == ["alice"]


async def test_many_askers_share_one_failure() -> None:
    """A fetch that fails fails for all who wait for it, and is not tried again for each."""
    keys, pool, _ = _keys(PermissionDeniedError("no"))
    pool.gate.clear()
    askers = [asyncio.create_task(keys.read("alice")) for _ in range(50)]
    await _turns()
    pool.gate.set()
    outcomes = await asyncio.gather(*askers, return_exceptions=True)
    assert all(isinstance(outcome, PermissionDeniedError) for outcome in outcomes)
    assert pool.fetches == ["alice"]


async def test_an_asker_who_leaves_takes_nothing_away() -> None:
    """A cancelled asker leaves the fetch to the others, and its answer to those who come later."""
    keys, pool, _ = _keys(_FILE)
    pool.gate.clear()
    leaver, stayer = (asyncio.create_task(keys.read("alice")) for _ in range(2))
    await _turns()
    leaver.cancel()
    await _turns()
    assert leaver.cancelled()
    pool.gate.set()
    assert (await stayer).content == _FILE
    assert (await keys.read("alice")).content == _FILE
    assert pool.fetches == ["alice"]


async def test_a_prefetch_that_fails_tells_nobody() -> None:
    """A failed prefetch is remembered like any failure, and asyncio warns of no lost exception."""
    keys, pool, _ = _keys(RemoteLostError("away"))
    keys.prefetch("alice")
    await _turns()
    assert isinstance(await _refused(keys), RemoteLostError)
    keys.prefetch("alice")
    await _turns()
    assert pool.fetches == ["alice"]


async def test_a_refusal_is_believed_for_the_ttl() -> None:
    """A refusal by the remote holds as long as a file would; after that the remote decides again."""
    keys, pool, clock = _keys(PermissionDeniedError("no"), _FILE)
    await _refused(keys)
    clock.now_s += _TTL_S - 0.1
    assert isinstance(await _refused(keys), PermissionDeniedError)
    assert pool.fetches == ["alice"]
    clock.now_s += 0.1
    assert (await keys.read("alice")).content == _FILE


@pytest.mark.parametrize("kind", [RemoteLostError, RemoteTimeoutError, HostKeyError])
async def test_an_outage_is_believed_for_seconds(kind: type[GatewayError]) -> None:
    """A failure of the network says nothing about a user: the remote is asked again soon, but not by every login."""
    keys, pool, clock = _keys(kind("away"), _FILE)
    await _refused(keys)
    clock.now_s += OUTAGE_TTL_S - 0.1
    assert type(await _refused(keys)) is kind
    assert pool.fetches == ["alice"]
    clock.now_s += 0.1
    assert (await keys.read("alice")).content == _FILE


async def test_an_outage_is_never_believed_for_longer_than_a_file() -> None:
    """A TTL below that of outages holds for them too."""
    keys, _, clock = _keys(RemoteLostError("away"), _FILE, ttl_s=1)
    await _refused(keys)
    clock.now_s += 1
    assert (await keys.read("alice")).content == _FILE


async def test_one_users_failure_is_not_the_others() -> None:
    """A refusal counts for the user who was refused."""
    keys, _, _ = _keys(PermissionDeniedError("no"), _FILE)
    await _refused(keys, "eve")
    assert (await keys.read("alice")).content == _FILE


@pytest.mark.parametrize("status", [1, 126, 127, 255])
async def test_no_file_lets_nobody_in(status: int) -> None:
    """An account that runs no commands has no keys, and that is remembered like a file."""
    keys, pool, _ = _keys(status)
    assert (await keys.read("alice")).content == b""
    assert (await keys.read("alice")).content == b""
    assert pool.fetches == ["alice"]


@pytest.mark.parametrize("status", [None, 128 + 9, 128 + 15])
async def test_without_its_own_exit_status_there_are_no_keys(status: int | None) -> None:
    """A command that was killed, or whose exit status is missing, was cut short: it gives no keys, and no verdict."""
    keys, pool, clock = _keys(_FILE)
    pool.alter = lambda ran: replace(ran, completed=replace(ran.completed, status=status))
    with pytest.raises(RemoteLostError):
        await keys.read("alice")

    # Other than a refusal, it is soon forgotten.
    pool.alter = lambda ran: ran
    clock.now_s += OUTAGE_TTL_S
    assert (await keys.read("alice")).content == _FILE


async def test_a_gateway_whose_key_was_taken_out_must_prove_itself_anew() -> None:
    """With its key gone from the file, a connection older than the TTL is given up, and the remote decides."""
    keys, pool, clock = _keys(_FILE, b"ssh-ed25519 AAAAalice\n", PermissionDeniedError("no"))
    await keys.read("alice")
    clock.now_s += _TTL_S
    assert isinstance(await _refused(keys), PermissionDeniedError)
    assert pool.forgotten == ["alice"]
    assert pool.fetches == ["alice"] * 3


async def test_a_gateway_that_is_let_in_by_other_means_is_renewed_once_in_a_ttl() -> None:
    """Its key may never have been in the file; then the new connection's answer counts, and is remembered."""
    other = b"ssh-ed25519 AAAAalice\n"
    keys, pool, clock = _keys(other)
    await keys.read("alice")
    clock.now_s += _TTL_S
    assert await keys.read("alice") == KeyFile(other, "remote", 110.0)
    assert pool.forgotten == ["alice"]
    await keys.read("alice")
    assert pool.fetches == ["alice"] * 3


async def test_a_young_connection_need_not_prove_itself() -> None:
    """A connection that was made for this login has just been let in."""
    keys, pool, _ = _keys(b"ssh-ed25519 AAAAalice\n")
    await keys.read("alice")
    assert pool.forgotten == []
    assert pool.fetches == ["alice"]


async def test_a_ttl_of_nothing_asks_each_time() -> None:
    """With GATEWAY_CACHE_TTL=0 nothing is remembered, and all is answered."""
    keys, pool, _ = _keys(_FILE, _FILE, PermissionDeniedError("no"), _FILE, ttl_s=0)
    assert (await keys.read("alice")).content == _FILE
    assert (await keys.read("alice")).content == _FILE
    await _refused(keys)
    assert (await keys.read("alice")).content == _FILE
    assert pool.fetches == ["alice"] * 4


class _Transport:
    """Stands for what a failed connection holds in memory."""


async def test_a_remembered_failure_holds_no_connection() -> None:
    """Neither its traceback, nor the error behind it, keeps a dead connection in memory."""
    held: list[weakref.ref[_Transport]] = []

    class Failing(FakePool):
        async def run(
            self,
            user: str,
            command: Callable[[str], str],
            *,
            max_bytes: int,
            until: Callable[[bytes], object] | None = None,
        ) -> CommandResult:
            del user, command, max_bytes, until
            transport = _Transport()
            held.append(weakref.ref(transport))
            try:
                raise OSError(str(transport))  # noqa: TRY301 - this frame is what would be held
            except OSError as exc:
                msg = "no"
                raise PermissionDeniedError(msg) from exc

    clock = ManualClock()
    keys = RemoteKeys(Failing(clock, 0), _TTL_S, _OWN_KEY, _SOURCES, clock=clock)
    await _refused(keys)
    await _refused(keys)
    await _turns()  # the event loop itself lets go with its next turn
    gc.collect()
    assert [reference() for reference in held] == [None]


async def test_a_remembered_failure_does_not_grow() -> None:
    """However often it is asked for, a failure's traceback stays as short as the first."""

    async def depth(keys: RemoteKeys) -> int:
        trace, frames = (await _refused(keys)).__traceback__, 0
        while trace is not None:
            trace, frames = trace.tb_next, frames + 1
        return frames

    keys, _, _ = _keys(PermissionDeniedError("no"))
    depths = [await depth(keys) for _ in range(10)]
    assert max(depths[1:]) == min(depths[1:])


async def test_keys_of_users_who_will_be_back_are_kept_fresh() -> None:
    """Late in the TTL a file is fetched anew; so a login after the TTL waits for nothing, and a revoked key is out."""
    revoked = b"ssh-ed25519 AAAAgateway\n"
    keys, pool, clock = _keys(_FILE, revoked)
    pool.likely = ["alice"]
    await keys.read("alice")
    clock.now_s += _TTL_S * REFRESHED_AFTER - 1
    await keys.refresh()
    assert pool.fetches == ["alice"]
    clock.now_s += 1
    await keys.refresh()
    clock.now_s += _TTL_S - 1
    assert await keys.read("alice") == KeyFile(revoked, "remote")
    assert pool.fetches == ["alice"] * 2
    clock.now_s += 1
    await keys.read("alice")
    assert pool.fetches == ["alice"] * 3


@pytest.mark.parametrize("outcome", [-1, 1, b"ssh-ed25519 AAAAmallory\n"])
async def test_what_a_refresh_cannot_vouch_for_is_left_to_the_next_login(outcome: bytes | int) -> None:
    """No connection, no file, or a file without the gateway's own key: what was fetched before holds until its TTL."""
    keys, pool, clock = _keys(_FILE, outcome, _FILE)
    pool.likely = ["alice"]
    await keys.read("alice")
    clock.now_s += _TTL_S * REFRESHED_AFTER
    await keys.refresh()
    assert (await keys.read("alice")).content == _FILE
    clock.now_s += _TTL_S * (1 - REFRESHED_AFTER)
    assert (await keys.read("alice")).fetch_ms > 0
    assert (pool.fetches, pool.forgotten) == (["alice"] * 3, [])


async def test_nobody_else_is_fetched_for_and_few_at_once() -> None:
    """Only users who will probably be back, at most a hundred, and never so many at once that logins wait for them."""
    keys, pool, clock = _keys(_FILE)
    await keys.read("stranger")
    pool.likely = [f"user{number}" for number in range(REFRESHED_USERS + 10)]
    clock.now_s += _TTL_S * REFRESHED_AFTER
    pool.gate.clear()
    task = asyncio.create_task(keys.refresh())
    await _turns()
    assert len(pool.fetches) - 1 <= 4
    pool.gate.set()
    await task
    assert pool.fetches == ["stranger", *pool.likely[10:]]


@pytest.mark.timeout(5)
async def test_a_short_ttl_is_not_kept_fresh() -> None:
    """An operator who wants the remote asked at almost every login does not want it asked all the time."""
    keys, _, _ = _keys(_FILE, ttl_s=REFRESHED_TTL_S - 1)
    await keys.keep_fresh()


async def test_the_same_keys_for_everybody(tmp_path: Path) -> None:
    """The content comes from the settings; a path is read at each login."""
    path = tmp_path / "keys"
    path.write_bytes(b"one")
    keys = PathKeys(path)
    assert await ContentKeys(b"x").read("alice") == await ContentKeys(b"x").read("bob") == KeyFile(b"x", "content")
    assert await keys.read("alice") == KeyFile(b"one", "path")
    path.write_bytes(b"two")
    assert await keys.read("bob") == KeyFile(b"two", "path")


async def test_a_path_that_cannot_be_read_lets_nobody_in(tmp_path: Path) -> None:
    """A missing file, a directory, a FIFO and a file that is too large are refusals which name the setting."""
    large = tmp_path / "large"
    large.write_bytes(b"x" * (MAX_CONTENT_BYTES + 1))
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "fifo", large, large / "below"):
        with pytest.raises(PermissionDeniedError, match="GATEWAY_AUTHORIZED_KEYS_PATH"):
            await PathKeys(path).read("alice")
    large.write_bytes(b"x" * MAX_CONTENT_BYTES)
    assert len((await PathKeys(large).read("alice")).content or b"") == MAX_CONTENT_BYTES


async def test_an_empty_file_is_not_any_key() -> None:
    """An empty file permits no key."""
    offered = parse_offered_key("ssh-ed25519", _KEY)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        privileged = PrivilegedClient(ours, lambda: None)
        assert (await LocalKeySource(ContentKeys(b""), privileged).judge("alice", offered)).lines == []
        assert (await AnyKeySource(privileged).judge("alice", offered)).lines == [f"ssh-ed25519 {_KEY}".encode()]
