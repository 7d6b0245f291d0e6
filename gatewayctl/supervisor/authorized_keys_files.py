"""The files from which sshd accepts keys without asking the broker: AuthorizedKeysFile, one for each recent user.

The broker supplies their content (`helpers.broker.keys.sshd_key_cache`). Root owns each file, as sshd requires
(sshd_config(5), StrictModes), and its user, as whom sshd reads it, can read it. Each line has an expiry time
(``expiry-time=``), and the file is removed at the end of its lifetime, measured by a monotonic clock.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path


class AuthorizedKeysFiles:
    """The directory of these files. It begins with none: `clear` removes those of an earlier gateway.

    Args:
        root: The directory; it exists, and root owns it.
        clock: Seconds, monotonic.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._root, self._clock = root, clock
        self._files: dict[str, tuple[int, float]] = {}

    @property
    def uids(self) -> set[int]:
        """The uids of users with a file."""
        return {uid for uid, _ in self._files.values()}

    def write(self, user: str, uid: int, lines: Sequence[str], seconds: float) -> None:
        """Write a user's file atomically, or remove it.

        Args:
            user: The user name, which is the file's name.
            uid: The uid as which sshd reads the file.
            lines: The file's lines; without any, the file is removed.
            seconds: The file's lifetime.
        """
        if not lines or seconds <= 0:
            self.remove(user)
            return
        new = self._root / f"+{user}"  # no valid user name contains "+"
        try:
            new.touch(mode=0o600)
            new.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
            os.chown(new, 0, uid)
            new.chmod(0o640)
            new.replace(self._root / user)
        except (OSError, UnicodeEncodeError):
            with suppress(OSError):
                new.unlink()
            self.remove(user)
            return
        self._files[user] = uid, self._clock() + seconds

    def remove(self, user: str) -> None:
        """Remove a user's file, if there is one."""
        self._files.pop(user, None)
        with suppress(OSError):
            (self._root / user).unlink()

    def sweep(self) -> float:
        """Remove expired files, and return after how many seconds the next one expires."""
        now = self._clock()
        for user, (_, ends_s) in list(self._files.items()):
            if ends_s <= now:
                self.remove(user)
        return min((ends_s - now for _, ends_s in self._files.values()), default=math.inf)

    def clear(self) -> None:
        """Remove all files."""
        self._files.clear()
        with suppress(OSError):
            for path in list(self._root.iterdir()):
                with suppress(OSError):
                    path.unlink()
