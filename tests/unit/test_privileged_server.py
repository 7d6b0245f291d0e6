"""What root does on the broker's word: homes, and files of keys; for whom it may be, and whose word counts."""

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
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gatewayctl.supervisor.authorized_keys_files import AuthorizedKeysFiles
from gatewayctl.supervisor.home_directories import UNUSED_S, HomeDirectories
from gatewayctl.supervisor.privileged_server import SWEEP_S, PrivilegedServer
from gatewayctl.supervisor.unproved_connections import UnprovedConnections
from helpers.broker.privileged_client import PrivilegedClient
from helpers.protocol.messages import MAX_REQUEST_BYTES, decode, encode

_UID = 70_001
_LINE = b"ssh-ed25519 AAAA"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making a home takes root")


class Place:
    """Homes and files of keys, with a clock that a test sets, and the broker's end of a way there.

    Attributes:
        way: The end of a broker whose word counts.
        later_s: Seconds that have passed.
        failure: What keeps root from seeing who has a process.
        stack: What is to be done at the end.
    """

    def __init__(self, root: Path, stack: ExitStack) -> None:
        """Have one broker."""
        self.homes, self.files, self.later_s = root / "home", root / "keys", 0.0
        self.failure: OSError | None = None
        for path in (self.homes, self.files):
            path.mkdir()
        self.stack = stack
        homes = HomeDirectories(self.homes, range(70_000, 70_010), self._busy, self._epoch)
        self.errands = PrivilegedServer(
            homes, AuthorizedKeysFiles(self.files, self._now), UnprovedConnections(os.getpid), self._now
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
        """Have another broker, and return its end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if active:
            self.errands.set_active_broker(theirs)
        thread = threading.Thread(target=self.errands.serve, args=(theirs,))
        thread.start()

        def end() -> None:
            ours.close()
            thread.join(10)
            assert not thread.is_alive()

        self.stack.callback(end)
        return ours

    def ask(self, scenario: Callable[[PrivilegedClient], Any], way: socket.socket | None = None) -> Any:
        """Be a broker."""

        async def run() -> Any:
            return await scenario(PrivilegedClient(way or self.way, lambda: None))

        return asyncio.run(run())

    def remember(
        self, user: str, uid: int, *lines: bytes, seconds: float = 60, way: socket.socket | None = None
    ) -> bool:
        """Ask for a user's file."""
        return self.ask(lambda errands: errands.remember(user, uid, lines, seconds), way) is None

    def make_home(self, user: str, uid: int) -> bool:
        """Ask for a user's home, and tell whether there is one."""
        return self.ask(lambda errands: errands.make_home(user, uid)) is None

    @property
    def known(self) -> dict[str, str]:
        """The files, and what is in them."""
        return {path.name: path.read_text("utf-8", "surrogateescape") for path in self.files.iterdir()}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place with one broker."""
    with ExitStack() as stack:
        yield Place(tmp_path, stack)


# Homes


def test_the_broker_has_homes_made(place: Place) -> None:
    """One after the other, and is told which could not be."""

    async def ask(errands: PrivilegedClient) -> list[str | None]:
        return [await errands.make_home("alice", uid) for uid in (_UID, 1, _UID + 1)]

    assert place.ask(ask) == [None, "no home directory could be made (uid 1 may have none)", None]
    assert {path.name for path in place.homes.iterdir()} == {str(_UID), str(_UID + 1)}
    assert place.known == {}


def test_homes_go_while_others_come(place: Place) -> None:
    """Logins that never let up keep nobody else's home there."""

    async def ask(errands: PrivilegedClient) -> None:
        assert await errands.make_home("alice", _UID) is None
        place.later_s = UNUSED_S + SWEEP_S
        # What was answered before the second of these was swept after.
        assert [await errands.make_home("bob", _UID + 1) for _ in range(2)] == [None, None]

    place.ask(ask)
    assert not (place.homes / str(_UID)).exists()


@pytest.mark.parametrize("goes", ["in time", "to another name"])
def test_a_home_as_deep_as_its_owner_likes_ends_nothing(place: Place, goes: str) -> None:
    """It goes like any other, others still get theirs, and who has its uid next finds nothing of it."""
    assert place.make_home("alice", _UID)
    place.stack.callback(lambda: subprocess.run(["rm", "-r", place.homes], check=True))  # pytest could not
    home = place.homes / str(_UID)
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
        place.later_s = UNUSED_S + SWEEP_S
        for _ in range(3):
            assert place.make_home("bob", _UID + 1)
        assert not home.exists()
    else:
        assert place.make_home("bob", _UID)
        assert list(home.iterdir()) == []


def test_a_sweep_that_cannot_look_ends_nothing(place: Place) -> None:
    """Such as when no file descriptor is left: others still get their homes."""
    place.failure = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    place.later_s = SWEEP_S
    for _ in range(3):
        assert place.make_home("bob", _UID + 1)


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
def test_a_request_of_another_form_does_nothing(place: Place, request_: bytes) -> None:
    """Root makes homes for users alone, and writes files by users' names alone, whatever the broker says."""
    place.way.send(request_)
    answer = decode(place.way.recv(MAX_REQUEST_BYTES))
    assert answer == {} or answer["trouble"]
    assert list(place.homes.iterdir()) == list(place.files.iterdir()) == []


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_supervisor_that_is_gone_does_nothing(when: str) -> None:
    """The broker hears that there is no home, waits for none, and makes room for another broker."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gone = threading.Event()

    async def ask() -> str | None:
        if when == "before":
            theirs.close()
        else:
            asyncio.get_running_loop().add_reader(theirs, theirs.close)
        return await PrivilegedClient(ours, gone.set).make_home("alice", _UID)

    with ours:
        assert asyncio.run(ask()) is not None
    assert gone.is_set()


# Keys


def test_sshd_gets_a_users_keys(place: Place) -> None:
    """They are in a file by the user's name, for sshd to read as that user, and nobody else may."""
    latin = b'environment="GATEWAY_COMMAND=\xe9" ssh-ed25519 BBBB'
    assert place.remember("alice", _UID, _LINE, latin)
    (path,) = place.files.iterdir()
    status = path.stat()
    assert (path.name, path.read_bytes()) == ("alice", _LINE + b"\n" + latin + b"\n")
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, _UID, 0o640)
    assert (place.homes / str(_UID)).is_dir()


def test_the_last_word_counts(place: Place) -> None:
    """A file is replaced as a whole, and removed where there is nothing to say."""
    assert place.remember("alice", _UID, _LINE, _LINE)
    assert place.remember("alice", _UID, b"ssh-ed25519 BBBB")
    assert place.known == {"alice": "ssh-ed25519 BBBB\n"}
    assert place.remember("alice", _UID)
    assert place.known == {}


def test_making_a_home_leaves_the_keys(place: Place) -> None:
    """They are another matter."""
    assert place.remember("alice", _UID, _LINE)
    assert place.make_home("alice", _UID)
    assert list(place.known) == ["alice"]


def test_lines_too_long_to_say_are_left_to_the_key_command(place: Place) -> None:
    """What was there before goes, and the login goes on."""
    assert place.remember("alice", _UID, _LINE)
    assert place.remember("alice", _UID, b"x" * MAX_REQUEST_BYTES)
    assert place.known == {}


def test_a_home_stays_while_its_owner_may_come_without_asking(place: Place) -> None:
    """And while one who came so last may be about to have a process; then it goes."""
    home = place.homes / str(_UID)
    seconds = UNUSED_S * 3
    assert place.remember("alice", _UID, _LINE, seconds=seconds)

    def at(later_s: float) -> tuple[list[str], bool]:
        place.later_s = later_s
        for _ in range(2):
            place.make_home("bob", _UID + 1)
        return list(place.known), home.exists()

    os.utime(home, (0, 0))
    assert at(seconds - SWEEP_S) == (["alice"], True)
    assert home.stat().st_mtime > 0
    os.utime(home, (time.time() + place.later_s,) * 2)  # as the kernel would have it by then
    assert at(seconds + 1) == ([], True)
    assert at(seconds + UNUSED_S + SWEEP_S) == ([], False)


@pytest.mark.parametrize("later_s", [0, 30], ids=["with a file", "without"])
def test_a_uid_that_went_to_another_name_leaves_nothing(place: Place, later_s: float) -> None:
    """Neither the last owner's keys nor what is in its home."""
    assert place.remember("alice", _UID, _LINE, seconds=20)
    (place.homes / str(_UID) / "secret").touch()
    place.later_s = later_s
    for _ in range(2):  # what was answered before the second of these was swept after
        assert place.make_home("carol", _UID + 1)
    assert place.make_home("bob", _UID)
    assert place.known == {}
    assert list((place.homes / str(_UID)).iterdir()) == []


def test_a_full_disk_leaves_no_old_keys(place: Place) -> None:
    """A file that cannot be written is gone, and the login goes on by the key command."""
    assert place.remember("alice", _UID, _LINE)
    (place.files / "+alice").mkdir()
    assert place.remember("alice", _UID, b"ssh-ed25519 BBBB")
    assert [path.name for path in place.files.iterdir()] == ["+alice"]


def test_keys_go_whatever_else_fails(place: Place) -> None:
    """Without a home to be made, or beside what cannot be removed."""
    assert place.remember("alice", _UID, _LINE)
    assert place.remember("bob", _UID + 1, _LINE)
    shutil.rmtree(place.homes)
    assert not place.remember("alice", _UID)
    assert not place.remember("bob", _UID + 1, _LINE)  # nor may bob come without asking
    assert place.known == {}
    place.homes.mkdir()
    assert place.remember("alice", _UID, _LINE)
    for number in range(16):
        (place.files / f"+{number}").mkdir()
    place.broker(active=True)
    assert not (place.files / "alice").exists()


@pytest.mark.parametrize("seconds", [10**400, 10**9, -(10**400)], ids=["endless", "long", "over"])
def test_time_without_end_is_none(place: Place, seconds: int) -> None:
    """Ten minutes at most are root's own word: what is longer neither writes a file nor ends the errands."""
    place.way.send(encode(_WHOLE | {"lines": ["x"], "seconds": seconds}))
    place.way.recv(MAX_REQUEST_BYTES)
    assert place.known == {}
    assert place.make_home("alice", _UID)


def test_the_word_of_one_broker_counts(place: Place) -> None:
    """After a reload only the new one's: the old one, which may have had another remote, makes no more than homes."""
    assert place.remember("alice", _UID, _LINE)
    new = place.broker(active=True)
    assert place.known == {}
    assert place.remember("alice", _UID, _LINE)
    assert place.known == {}
    assert place.remember("bob", _UID + 1, _LINE, way=new)
    assert list(place.known) == ["bob"]


def test_a_broker_that_fails_to_begin_changes_nothing(place: Place) -> None:
    """A reload that fails leaves the word to the old one."""
    new = place.broker(active=False)
    assert place.remember("bob", _UID + 1, _LINE, way=new)
    assert place.remember("alice", _UID, _LINE)
    assert list(place.known) == ["alice"]


def test_a_broker_that_is_gone_takes_its_keys_along(tmp_path: Path) -> None:
    """Nobody would say any more that one of them was revoked."""
    with ExitStack() as stack:
        place = Place(tmp_path, stack)
        assert place.remember("alice", _UID, _LINE)
    assert place.known == {}
