"""Users' home directories on the gateway: private, in the runtime directory, and only while somebody is logged in.

sshd puts the forwarded agent's socket there (OpenSSH 10.1 and later), and ssh the sockets by which sessions share a
connection. Making one takes root, deciding for whom is the broker's: it asks over a socket that only it holds.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from helpers.broker.users import uids_with_processes

SWEEP_S = 10.0
"""Seconds between looks for homes that nobody needs."""

UNUSED_S = 60.0
"""Seconds for which a home without a process of its owner's is kept: above LoginGraceTime (30 s), within which its
owner may be about to have one."""

MESSAGE_BYTES = 4
"""A request is a uid, big-endian; the answer is the same once the directory is there, else zeros."""


class Homes:
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

    def make(self, uid: int) -> bool:
        """Make a user's home, or see that it is there.

        Args:
            uid: The owner; one out of range gets none.

        Returns:
            Whether it is there now.
        """
        if uid not in self._uids:
            return False
        home = self._root / str(uid)
        try:
            with suppress(FileExistsError):
                home.mkdir(mode=0o700)
            os.utime(home, follow_symlinks=False)
            os.chown(home, uid, uid, follow_symlinks=False)
        except OSError:
            return False
        return True

    def sweep(self) -> None:
        """Remove the homes whose owners have no process and have not just asked for one."""
        homes = [home for home in self._root.iterdir() if home.name.isdigit()]
        if not homes:
            return
        busy = set(self._busy())
        for home in homes:
            with suppress(OSError):
                if int(home.name) not in busy and self._clock() - home.stat().st_mtime > UNUSED_S:
                    shutil.rmtree(home, ignore_errors=True)

    def serve(self, sock: socket.socket) -> None:
        """Answer one broker's requests until it is gone.

        Args:
            sock: Our end of a SOCK_SEQPACKET pair; closed at the end.
        """
        with sock:
            sock.settimeout(SWEEP_S)
            swept_s = self._clock()
            while True:
                # By the clock and not by silence: with a login every few seconds there is none, and no home would go.
                if abs(self._clock() - swept_s) >= SWEEP_S:
                    self.sweep()
                    swept_s = self._clock()
                try:
                    request = sock.recv(MESSAGE_BYTES)
                    if not request:
                        return
                    made = len(request) == MESSAGE_BYTES and self.make(int.from_bytes(request))
                    sock.send(request if made else bytes(MESSAGE_BYTES))
                except TimeoutError:
                    continue
                except OSError:
                    return
