"""Homes on the gateway: made private for their owners, and removed when nobody needs them."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatewayctl.homes import SWEEP_S, UNUSED_S, Homes
from helpers.broker.homes import HomeMaker

_UID = 70_001

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making a home takes root")


class Place:
    """A directory of homes, with a clock and a list of busy uids that a test sets."""

    def __init__(self, root: Path) -> None:
        """Begin with nobody busy."""
        self.root, self.busy = root, set[int]()
        self.later_s = 0.0
        self.homes = Homes(root, range(70_000, 70_010), lambda: self.busy, self._now)

    def _now(self) -> float:
        times = [path.lstat().st_mtime for path in self.root.iterdir()]
        return max(times, default=0.0) + self.later_s


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A directory of homes."""
    return Place(tmp_path)


def test_a_home_is_its_owners_alone(place: Place) -> None:
    """It belongs to the uid, and nobody else may enter."""
    assert place.homes.make(_UID)
    status = (place.root / str(_UID)).stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (_UID, _UID, 0o700)


def test_a_home_that_is_there_keeps_its_files(place: Place) -> None:
    """Making it again is no harm."""
    assert place.homes.make(_UID)
    (place.root / str(_UID) / "file").touch()
    assert place.homes.make(_UID)
    assert (place.root / str(_UID) / "file").exists()


@pytest.mark.parametrize("uid", [0, 1, 69_999, 70_010, 2**32 - 1])
def test_a_uid_out_of_range_has_no_home(place: Place, uid: int) -> None:
    """Root and the machine's own users get none, whatever the broker says."""
    assert not place.homes.make(uid)
    assert list(place.root.iterdir()) == []


def test_a_link_is_not_followed(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A link in a home's place does not give its target away."""
    target = tmp_path_factory.mktemp("target")
    (place.root / str(_UID)).symlink_to(target)
    place.homes.make(_UID)
    assert target.stat().st_uid == 0


@pytest.mark.parametrize(
    ("busy", "later_s", "stays"),
    [(True, UNUSED_S + 1, True), (False, UNUSED_S - 1, True), (False, UNUSED_S + 1, False)],
    ids=["in use", "about to be used", "unused"],
)
def test_only_homes_that_nobody_needs_go(place: Place, *, busy: bool, later_s: float, stays: bool) -> None:
    """A home stays while its owner has a process, and for a minute after it was asked for."""
    assert place.homes.make(_UID)
    (place.root / str(_UID) / "file").touch()
    place.busy = {_UID} if busy else set()
    os.utime(place.root / str(_UID))
    place.later_s = later_s
    place.homes.sweep()
    assert (place.root / str(_UID)).exists() == stays


def test_a_sweep_leaves_what_is_no_home(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Other names stay, and what a link in a home points to stays too."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "file").touch()
    (place.root / "other").mkdir()
    assert place.homes.make(_UID)
    (place.root / str(_UID) / "link").symlink_to(outside)
    place.later_s = UNUSED_S + 1
    place.homes.sweep()
    assert [path.name for path in place.root.iterdir()] == ["other"]
    assert (outside / "file").exists()


@pytest.fixture
def served(place: Place) -> Iterator[socket.socket]:
    """The broker's end of a socket pair that is being served."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    thread = threading.Thread(target=place.homes.serve, args=(theirs,))
    thread.start()
    yield ours
    ours.close()
    thread.join(10)
    assert not thread.is_alive()


def test_the_broker_has_homes_made(place: Place, served: socket.socket) -> None:
    """One after the other, and is told which could not be."""

    async def ask() -> list[bool]:
        maker = HomeMaker(served)
        return [await maker.make(uid) for uid in (_UID, 1, _UID + 1)]

    assert asyncio.run(ask()) == [True, False, True]
    assert {path.name for path in place.root.iterdir()} == {str(_UID), str(_UID + 1)}


def test_homes_go_while_others_come(place: Place, served: socket.socket) -> None:
    """Logins that never let up keep nobody else's home there."""

    async def ask() -> None:
        maker = HomeMaker(served)
        assert await maker.make(_UID)
        place.later_s = UNUSED_S + SWEEP_S
        # What was answered before the second of these was swept after.
        assert [await maker.make(_UID + 1) for _ in range(2)] == [True, True]

    asyncio.run(ask())
    assert not (place.root / str(_UID)).exists()


@pytest.mark.parametrize("request_", [b"x", b"\0\0\0", bytes(4), bytes(5)])
def test_a_request_of_another_form_makes_nothing(place: Place, served: socket.socket, request_: bytes) -> None:
    """It is answered with zeros."""
    served.send(request_)
    assert served.recv(16) == bytes(4)
    assert list(place.root.iterdir()) == []


def test_a_supervisor_that_is_gone_makes_nothing() -> None:
    """The broker hears that there is no home, and waits for none."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with ours:
        assert not asyncio.run(HomeMaker(ours).make(_UID))
