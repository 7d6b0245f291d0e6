"""Users' home directories on the gateway: private, in the runtime directory, and removed when no longer needed.

sshd creates the forwarded agent's socket there (OpenSSH 10.1 and later), and ssh the sockets by which sessions share a
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
"""Seconds for which a home is kept while its owner has no process: above LoginGraceTime (45 s), within which the owner
may still log in."""


class HomeDirectories:
    """The directory of homes.

    Args:
        root: The directory; it exists, and root owns it.
        uids: The uids that may have a home.
        busy: Lists the uids that own a process.
        clock: Seconds since the epoch, as in a file's times.
    """

    def __init__(
        self,
        root: Path,
        uids: range,
        busy: Callable[[], Iterable[int]] = uids_with_processes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root, self._uids, self._busy, self._clock = root, uids, busy, clock

    def make(self, uid: int) -> None:
        """Make a user's home if it is missing.

        Args:
            uid: The owner.

        Raises:
            OSError: The home cannot be made; `PermissionError` for a uid that may not have one.
        """
        if uid not in self._uids:
            raise PermissionError(EPERM, f"uid {uid} may have none")
        home = self._root / str(uid)
        with suppress(FileExistsError):
            home.mkdir(mode=0o700)
        os.utime(home, follow_symlinks=False)  # to the current time: any other requires CAP_FOWNER
        os.chown(home, uid, uid, follow_symlinks=False)

    def remove(self, uid: int) -> None:
        """Remove a user's home with its content; directories that are nested too deeply for Python are moved away.

        The uid's next owner must not find them: sshd and ssh trust the files in a home.
        """
        home = self._root / str(uid)
        with suppress(RecursionError):
            shutil.rmtree(home, ignore_errors=True)
        with suppress(OSError):  # usually it does not exist
            home.rename(self._root / f"+{uid}-{time.monotonic_ns()}")

    def sweep(self, expected: Container[int] = ()) -> None:
        """Remove the homes that were not requested recently and whose owners have no process.

        Args:
            expected: Uids that sshd accepts without asking the broker; their homes count as just requested.
        """
        try:
            homes = [home for home in self._root.iterdir() if home.name.isdigit()]
            busy = set(self._busy()) if homes else set()
        except OSError:  # no file descriptor is left; try again later
            return
        for home in homes:
            with suppress(OSError):
                uid = int(home.name)
                if uid in expected:
                    os.utime(home, follow_symlinks=False)
                # The owner has set a time in the future, which would keep the home forever.
                elif uid not in busy and abs(self._clock() - home.stat().st_mtime) > UNUSED_S:
                    self.remove(uid)
