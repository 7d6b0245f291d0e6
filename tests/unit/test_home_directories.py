"""Homes on the gateway: made private for their owners, and removed when nobody needs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gatewayctl.supervisor.home_directories import UNUSED_S, HomeDirectories

_UID = 70_001

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making a home takes root")


class Place:
    """A directory of homes, with a clock and a list of busy uids that a test sets."""

    def __init__(self, root: Path) -> None:
        """Begin with nobody busy."""
        self.root, self.busy = root, set[int]()
        self.later_s = 0.0
        self.homes = HomeDirectories(root, range(70_000, 70_010), lambda: self.busy, self._now)

    def _now(self) -> float:
        return time.time() + self.later_s


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A directory of homes."""
    return Place(tmp_path)


def test_a_home_is_its_owners_alone(place: Place) -> None:
    """It belongs to the uid, and nobody else may enter."""
    place.homes.make(_UID)
    status = (place.root / str(_UID)).stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (_UID, _UID, 0o700)


def test_a_home_that_is_there_takes_no_capability_more(tmp_path: Path) -> None:
    """Who has it made again is its owner by then, and root in a container may not do all that an owner may."""
    code = f"""
from pathlib import Path
from gatewayctl.supervisor.home_directories import HomeDirectories
homes = HomeDirectories(Path({str(tmp_path)!r}), range(70_000, 70_010))
for _ in range(2):
    homes.make({_UID})
"""
    argv = ["setpriv", "--bounding-set=-fowner", "--", sys.executable, "-c", code]
    subprocess.run(argv, check=True)


def test_a_home_that_is_there_keeps_its_files(place: Place) -> None:
    """Making it again is no harm."""
    place.homes.make(_UID)
    (place.root / str(_UID) / "file").touch()
    place.homes.make(_UID)
    assert (place.root / str(_UID) / "file").exists()


@pytest.mark.parametrize("uid", [0, 1, 69_999, 70_010, 2**32 - 1])
def test_a_uid_out_of_range_has_no_home(place: Place, uid: int) -> None:
    """Root and the machine's own users get none, whatever the broker says."""
    with pytest.raises(PermissionError):
        place.homes.make(uid)
    assert list(place.root.iterdir()) == []


def test_a_link_is_not_followed(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A link in a home's place does not give its target away."""
    target = tmp_path_factory.mktemp("target")
    (place.root / str(_UID)).symlink_to(target)
    place.homes.make(_UID)
    assert target.stat().st_uid == 0


@pytest.mark.parametrize(
    ("busy", "expected", "later_s", "stays"),
    [
        (True, False, UNUSED_S + 1, True),
        (False, True, UNUSED_S + 1, True),
        (False, False, UNUSED_S - 1, True),
        (False, False, UNUSED_S + 1, False),
    ],
    ids=["in use", "expected", "about to be used", "unused"],
)
def test_only_homes_that_nobody_needs_go(
    place: Place, *, busy: bool, expected: bool, later_s: float, stays: bool
) -> None:
    """A home stays while its owner has a process or may come, and for a minute after it was asked for."""
    place.homes.make(_UID)
    (place.root / str(_UID) / "file").touch()
    place.busy = {_UID} if busy else set()
    os.utime(place.root / str(_UID))
    place.later_s = later_s
    place.homes.sweep({_UID} if expected else ())
    assert (place.root / str(_UID)).exists() == stays


@pytest.mark.parametrize("ahead_s", [UNUSED_S / 2, 2 * UNUSED_S, 1e9])
def test_a_home_from_times_to_come(place: Place, ahead_s: float) -> None:
    """Its owner, who may give it any time, does not keep it so: the uid's next owner would have it."""
    place.homes.make(_UID)
    soon = time.time() + ahead_s
    os.utime(place.root / str(_UID), (soon, soon))
    place.homes.sweep()
    assert (place.root / str(_UID)).exists() == (ahead_s < UNUSED_S)


def test_a_sweep_leaves_what_is_no_home(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Other names stay, and what a link in a home points to stays too."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "file").touch()
    (place.root / "other").mkdir()
    place.homes.make(_UID)
    (place.root / str(_UID) / "link").symlink_to(outside)
    place.later_s = UNUSED_S + 1
    place.homes.sweep()
    assert [path.name for path in place.root.iterdir()] == ["other"]
    assert (outside / "file").exists()
