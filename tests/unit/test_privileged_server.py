"""Work that root does for the broker: homes and files of keys, for which users, and at which broker's request."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gatewayctl.sshd.connections import Connections
from gatewayctl.supervisor.authorized_keys_files import AuthorizedKeysFiles
from gatewayctl.supervisor.home_directories import UNUSED_S, HomeDirectories
from gatewayctl.supervisor.privileged_server import SWEEP_S, PrivilegedServer
from gatewayctl.supervisor.sshd_log import SshdLog
from gatewayctl.supervisor.unproved_connections import UnprovedConnections
from helpers.broker.client_traffic import Traffic
from helpers.broker.privileged_client import PrivilegedClient, SshdConnection
from helpers.protocol.messages import MAX_REQUEST_BYTES, decode, encode

_UID = 70_001
_LINE = b"ssh-ed25519 AAAA"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making a home takes root")


class Supervisor:
    """The supervisor's side: homes, files of keys, a clock that a test sets, and brokers that are connected.

    Attributes:
        way: The socket of the active broker.
        later_s: Seconds that have passed.
        failure: The error that root gets when it lists the uids of processes; None for none.
        stack: The clean-up after the test.
        connections: sshd's connections.
    """

    def __init__(self, root: Path, stack: ExitStack) -> None:
        """Connect one broker."""
        self.homes, self.files, self.later_s = root / "home", root / "keys", 0.0
        self.failure: OSError | None = None
        for path in (self.homes, self.files):
            path.mkdir()
        self.stack, self.connections = stack, Connections()
        homes = HomeDirectories(self.homes, range(70_000, 70_010), self._busy, self._epoch)
        self.server = PrivilegedServer(
            homes,
            AuthorizedKeysFiles(self.files, self._now),
            UnprovedConnections(os.getpid),
            SshdLog(self.connections, None),
            self._now,
        )
        self.way = self.broker(active=True)

    def _busy(self) -> list[int]:
        if self.failure is not None:
            raise self.failure
        return []

    def _now(self) -> float:
        return self.later_s

    def _epoch(self) -> float:
        return time.time() + self.later_s

    def broker(self, *, active: bool) -> socket.socket:
        """Connect another broker, and return its socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if active:
            self.server.set_active_broker(theirs)
        thread = threading.Thread(target=self.server.serve, args=(theirs,))
        thread.start()

        def end() -> None:
            ours.close()
            thread.join(10)
            assert not thread.is_alive()

        self.stack.callback(end)
        return ours

    async def remember(
        self, user: str, uid: int, *lines: bytes, seconds: float = 60, way: socket.socket | None = None
    ) -> bool:
        """Ask for a user's file, and tell whether there is a home."""
        return await PrivilegedClient(way or self.way, lambda: None).remember(user, uid, lines, seconds) is None

    async def make_home(self, user: str, uid: int) -> bool:
        """Ask for a user's home, and tell whether there is one."""
        return await PrivilegedClient(self.way, lambda: None).make_home(user, uid) is None

    @property
    def known(self) -> dict[str, str]:
        """The files, and what is in them."""
        return {path.name: path.read_text("utf-8", "surrogateescape") for path in self.files.iterdir()}


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """Make a supervisor with one broker."""
    with ExitStack() as stack:
        yield Supervisor(tmp_path, stack)


# Homes


async def test_the_broker_has_homes_made(supervisor: Supervisor) -> None:
    """They are made one after the other, and the answer says which could not be."""
    client = PrivilegedClient(supervisor.way, lambda: None)
    answers = [await client.make_home("alice", uid) for uid in (_UID, 1, _UID + 1)]
    assert answers == [None, "no home directory could be made (uid 1 may have none)", None]
    assert {path.name for path in supervisor.homes.iterdir()} == {str(_UID), str(_UID + 1)}
    assert supervisor.known == {}


async def test_homes_go_while_others_come(supervisor: Supervisor) -> None:
    """Unused homes are removed also while logins never stop."""
    client = PrivilegedClient(supervisor.way, lambda: None)
    assert await client.make_home("alice", _UID) is None
    supervisor.later_s = UNUSED_S + SWEEP_S
    # The server sweeps after it has answered: the second answer comes after the first one's sweep.
    assert [await client.make_home("bob", _UID + 1) for _ in range(2)] == [None, None]
    assert not (supervisor.homes / str(_UID)).exists()


@pytest.mark.parametrize("goes", ["in time", "to another name"])
async def test_a_home_as_deep_as_its_owner_likes_ends_nothing(supervisor: Supervisor, goes: str) -> None:
    """It is removed like any other, others still get theirs, and the next user of its uid finds nothing of it."""
    assert await supervisor.make_home("alice", _UID)
    supervisor.stack.callback(lambda: subprocess.run(["rm", "-r", supervisor.homes], check=True))  # pytest could not
    home = supervisor.homes / str(_UID)
    for name in (".ssh", "e", "f"):
        (home / name).mkdir()
        (home / name / "environment").touch()
    fd = os.open(home, os.O_PATH)
    for _ in range(2 * sys.getrecursionlimit()):
        os.mkdir("d", dir_fd=fd)
        outer, fd = fd, os.open("d", os.O_PATH, dir_fd=fd)
        os.close(outer)
    os.close(fd)
    if goes == "in time":
        supervisor.later_s = UNUSED_S + SWEEP_S
        for _ in range(3):
            assert await supervisor.make_home("bob", _UID + 1)
        assert not home.exists()
    else:
        assert await supervisor.make_home("bob", _UID)
        assert list(home.iterdir()) == []


async def test_a_sweep_that_cannot_look_ends_nothing(supervisor: Supervisor) -> None:
    """When no file descriptor is left, for example, others still get their homes."""
    supervisor.failure = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    supervisor.later_s = SWEEP_S
    for _ in range(3):
        assert await supervisor.make_home("bob", _UID + 1)


_WHOLE = {"user": "alice", "uid": _UID, "number": 1}


@pytest.mark.parametrize(
    "request_",
    [
        b"x",
        b"{}",
        b"[]",
        bytes(4),
        *(encode(_WHOLE | {"user": name}) for name in ("", ".", "..", "../alice", "a/b", "+alice", "a b", 1, None)),
        *(encode(_WHOLE | {"uid": uid}) for uid in (0, 1, -1, 70_010, "70001", True, 70_001.0, None)),
        *(encode(_WHOLE | {"lines": lines, "seconds": 60}) for lines in ("x", [1], ["a\nb"], {"a": 1}, [None])),
        *(encode(_WHOLE | {"lines": ["x"], "seconds": seconds}) for seconds in ("60", None, True, [1])),
        *(
            encode(_WHOLE | {"client": client})
            for client in (1, "1", [], [1], ["1", None], [1, 1], [1, "x"], [True, None])
        ),
    ],
)
def test_a_request_of_another_form_does_nothing(supervisor: Supervisor, request_: bytes) -> None:
    """Root makes homes for users only, and writes files under users' names only, whatever the broker asks for."""
    supervisor.way.send(request_)
    answer = decode(supervisor.way.recv(MAX_REQUEST_BYTES))
    assert answer == {} or answer["trouble"]
    assert list(supervisor.homes.iterdir()) == list(supervisor.files.iterdir()) == []


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_supervisor_that_is_gone_does_nothing(when: str) -> None:
    """The broker gets an error at once, and makes room for another broker."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gone = threading.Event()
    with ours:
        if when == "before":
            theirs.close()
        else:
            asyncio.get_running_loop().add_reader(theirs, theirs.close)
        assert await PrivilegedClient(ours, gone.set).make_home("alice", _UID) is not None
    assert gone.is_set()


# Connections


async def test_the_broker_asks_for_a_connection(supervisor: Supervisor) -> None:
    """It gets the client's address, and how the client left; nothing about a connection that is not sshd's."""
    client = PrivilegedClient(supervisor.way, lambda: None)
    supervisor.connections.note(7, 'Connection from 192.0.2.7 port 9 on ::1 port 2222 rdomain ""', root=True)
    assert await client.connection(7) == SshdConnection("192.0.2.7:9")
    supervisor.connections.note(7, "Connection closed by 192.0.2.7 port 9", root=True)
    supervisor.connections.note(7, "Transferred: sent 3132, received 3720 bytes", root=True)
    assert await client.connection(7) == SshdConnection("192.0.2.7:9", "lost", Traffic(3132, 3720))
    assert await client.connection(8) == SshdConnection()


@pytest.mark.parametrize("number", ["7", True, [7], 7.0])
@pytest.mark.parametrize("name", ["connection", "watch", "session"])
def test_a_process_that_is_no_number_is_no_request(supervisor: Supervisor, name: str, number: object) -> None:
    """Root opens no process for it, and tells nothing."""
    supervisor.way.send(encode({"connection": 7, "number": 1} | {name: number}))
    assert decode(supervisor.way.recv(MAX_REQUEST_BYTES)) == {"number": 1}


# Keys


async def test_sshd_gets_a_users_keys(supervisor: Supervisor) -> None:
    """They are in a file by the user's name, which sshd reads as that user, and which nobody else may read."""
    latin = b'environment="GATEWAY_COMMAND=\xe9" ssh-ed25519 BBBB'
    assert await supervisor.remember("alice", _UID, _LINE, latin)
    (path,) = supervisor.files.iterdir()
    status = path.stat()
    assert (path.name, path.read_bytes()) == ("alice", _LINE + b"\n" + latin + b"\n")
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, _UID, 0o640)
    assert (supervisor.homes / str(_UID)).is_dir()


async def test_the_last_word_counts(supervisor: Supervisor) -> None:
    """A file is replaced as a whole, and removed when there are no lines."""
    assert await supervisor.remember("alice", _UID, _LINE, _LINE)
    assert await supervisor.remember("alice", _UID, b"ssh-ed25519 BBBB")
    assert supervisor.known == {"alice": "ssh-ed25519 BBBB\n"}
    assert await supervisor.remember("alice", _UID)
    assert supervisor.known == {}


async def test_making_a_home_leaves_the_keys(supervisor: Supervisor) -> None:
    """A request for a home says nothing about keys."""
    assert await supervisor.remember("alice", _UID, _LINE)
    assert await supervisor.make_home("alice", _UID)
    assert list(supervisor.known) == ["alice"]


async def test_lines_too_long_to_say_are_left_to_the_key_command(supervisor: Supervisor) -> None:
    """The old file is removed, and the login goes on."""
    assert await supervisor.remember("alice", _UID, _LINE)
    assert await supervisor.remember("alice", _UID, b"x" * MAX_REQUEST_BYTES)
    assert supervisor.known == {}


async def test_a_home_stays_while_its_owner_may_come_without_asking(supervisor: Supervisor) -> None:
    """It also stays while the last such login may be about to have a process; then it is removed."""
    home = supervisor.homes / str(_UID)
    seconds = UNUSED_S * 3
    assert await supervisor.remember("alice", _UID, _LINE, seconds=seconds)

    async def at(later_s: float) -> tuple[list[str], bool]:
        supervisor.later_s = later_s
        for _ in range(2):
            await supervisor.make_home("bob", _UID + 1)
        return list(supervisor.known), home.exists()

    os.utime(home, (0, 0))
    assert await at(seconds - SWEEP_S) == (["alice"], True)
    assert home.stat().st_mtime > 0
    os.utime(home, (time.time() + supervisor.later_s,) * 2)  # as the kernel would have it by then
    assert await at(seconds + 1) == ([], True)
    assert await at(seconds + UNUSED_S + SWEEP_S) == ([], False)


@pytest.mark.parametrize("later_s", [0, 30], ids=["with a file", "without"])
async def test_a_uid_that_went_to_another_name_leaves_nothing(supervisor: Supervisor, later_s: float) -> None:
    """The next user gets neither the last owner's keys nor the files in its home."""
    assert await supervisor.remember("alice", _UID, _LINE, seconds=20)
    (supervisor.homes / str(_UID) / "secret").touch()
    supervisor.later_s = later_s
    for _ in range(2):  # the second answer comes after the first one's sweep
        assert await supervisor.make_home("carol", _UID + 1)
    assert await supervisor.make_home("bob", _UID)
    assert supervisor.known == {}
    assert list((supervisor.homes / str(_UID)).iterdir()) == []


async def test_a_full_disk_leaves_no_old_keys(supervisor: Supervisor) -> None:
    """A file that cannot be written is gone, and the login goes on by the key command."""
    assert await supervisor.remember("alice", _UID, _LINE)
    (supervisor.files / "+alice").mkdir()
    assert await supervisor.remember("alice", _UID, b"ssh-ed25519 BBBB")
    assert [path.name for path in supervisor.files.iterdir()] == ["+alice"]


async def test_keys_go_whatever_else_fails(supervisor: Supervisor) -> None:
    """They are removed also when no home can be made, or when something beside them cannot be removed."""
    assert await supervisor.remember("alice", _UID, _LINE)
    assert await supervisor.remember("bob", _UID + 1, _LINE)
    shutil.rmtree(supervisor.homes)
    assert not await supervisor.remember("alice", _UID)
    assert not await supervisor.remember("bob", _UID + 1, _LINE)  # nor may bob come without asking
    assert supervisor.known == {}
    supervisor.homes.mkdir()
    assert await supervisor.remember("alice", _UID, _LINE)
    for number in range(16):
        (supervisor.files / f"+{number}").mkdir()
    supervisor.broker(active=True)
    assert not (supervisor.files / "alice").exists()


@pytest.mark.parametrize("seconds", [10**400, 10**9, -(10**400)], ids=["endless", "long", "over"])
async def test_time_without_end_is_none(supervisor: Supervisor, seconds: int) -> None:
    """Root allows ten minutes at most: a longer time neither writes a file nor ends the server."""
    supervisor.way.send(encode(_WHOLE | {"lines": ["x"], "seconds": seconds}))
    supervisor.way.recv(MAX_REQUEST_BYTES)
    assert supervisor.known == {}
    assert await supervisor.make_home("alice", _UID)


async def test_the_word_of_one_broker_counts(supervisor: Supervisor) -> None:
    """After a reload only the new broker writes files: the old one, which may have another remote, gets homes only."""
    assert await supervisor.remember("alice", _UID, _LINE)
    new = supervisor.broker(active=True)
    assert supervisor.known == {}
    assert await supervisor.remember("alice", _UID, _LINE)
    assert supervisor.known == {}
    assert await supervisor.remember("bob", _UID + 1, _LINE, way=new)
    assert list(supervisor.known) == ["bob"]


async def test_a_broker_that_fails_to_begin_changes_nothing(supervisor: Supervisor) -> None:
    """A reload that fails leaves the old broker active."""
    new = supervisor.broker(active=False)
    assert await supervisor.remember("bob", _UID + 1, _LINE, way=new)
    assert await supervisor.remember("alice", _UID, _LINE)
    assert list(supervisor.known) == ["alice"]


async def test_a_broker_that_is_gone_takes_its_keys_along(tmp_path: Path) -> None:
    """No broker is left to say that one of them was revoked."""
    with ExitStack() as stack:
        supervisor = Supervisor(tmp_path, stack)
        assert await supervisor.remember("alice", _UID, _LINE)
    assert supervisor.known == {}
