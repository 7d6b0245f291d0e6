"""Users' home directories on the gateway: private, in the runtime directory, and only while needed.

sshd puts the forwarded agent's socket there (OpenSSH 10.1 and later), and ssh the sockets by which sessions share a
connection.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from errno import EPERM
from pathlib import Path

from helpers.broker.accounts.uid_table import uids_with_processes

UNUSED_S = 60.0
"""Seconds for which a home without a process of its owner's is kept: above LoginGraceTime (45 s), within which its
owner may be about to have one."""


class HomeDirectories:
    """The directory of homes.

    Args:
        root: Where they are; exists, and belongs to root.
        uids: Those that may have one.
        busy: Lists the uids that own a process now.
        clock: Seconds since the epoch, as a file's times are.
    """

    def __init__(
        self,
        root: Path,
        uids: range,
        busy: Callable[[], Iterable[int]] = uids_with_processes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Remember where."""
        self._root, self._uids, self._busy, self._clock = root, uids, busy, clock

    def make(self, uid: int) -> None:
        """Make a user's home, or see that it is there.

        Args:
            uid: The owner.

        Raises:
            OSError: It cannot be made; `PermissionError` for a uid that may have none.
        """
        if uid not in self._uids:
            raise PermissionError(EPERM, f"uid {uid} may have none")
        home = self._root / str(uid)
        with suppress(FileExistsError):
            home.mkdir(mode=0o700)
        os.utime(home, follow_symlinks=False)  # to now: another time takes CAP_FOWNER
        os.chown(home, uid, uid, follow_symlinks=False)

    def remove(self, uid: int) -> None:
        """Remove a user's home with all that is in it; what its owner nested deeper than Python goes is put aside.

        The uid's next owner must not find it: sshd and ssh believe what is in a home.
        """
        home = self._root / str(uid)
        with suppress(RecursionError):
            shutil.rmtree(home, ignore_errors=True)
        with suppress(OSError):  # there is none, as nearly always
            home.rename(self._root / f"+{uid}-{time.monotonic_ns()}")

    def sweep(self, expected: Container[int] = ()) -> None:
        """Remove the homes whose owners have no process and have not just asked for one.

        Args:
            expected: Uids whose owners may come without asking; that counts as if they just had.
        """
        try:
            homes = [home for home in self._root.iterdir() if home.name.isdigit()]
            busy = set(self._busy()) if homes else set()
        except OSError:  # no file descriptor is left at the moment
            return
        for home in homes:
            with suppress(OSError):
                uid = int(home.name)
                if uid in expected:
                    os.utime(home, follow_symlinks=False)
                # From a time to come is none that we set: its owner would keep it for good.
                elif uid not in busy and abs(self._clock() - home.stat().st_mtime) > UNUSED_S:
                    self.remove(uid)
