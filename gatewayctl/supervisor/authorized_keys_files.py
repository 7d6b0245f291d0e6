"""The keys that sshd knows by itself: AuthorizedKeysFile, one for each user who was here a moment ago.

The broker says what is in them (`helpers.broker.keys.sshd_key_cache`). Each belongs to root, as sshd wants it
(sshd_config(5), StrictModes), and is readable for its user, as whom sshd reads it. Each of its lines ends by itself
(``expiry-time=``);
and a file goes when its time is over, by a clock that nobody sets.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path


class AuthorizedKeysFiles:
    """The directory of them.

    Args:
        root: Where they are; exists, and belongs to root.
        clock: Seconds, monotonic.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Know of none; what an earlier gateway left is gone with `clear`."""
        self._root, self._clock = root, clock
        self._files: dict[str, tuple[int, float]] = {}

    @property
    def uids(self) -> set[int]:
        """The uids of those who have one."""
        return {uid for uid, _ in self._files.values()}

    def write(self, user: str, uid: int, lines: Sequence[str], seconds: float) -> None:
        """Write a user's file in one step, or remove it.

        Args:
            user: A user name; sshd looks for the file by it.
            uid: As whom sshd reads it.
            lines: What is in it; where there are none it is removed.
            seconds: After how long it goes.
        """
        if not lines or seconds <= 0:
            self.remove(user)
            return
        new = self._root / f"+{user}"  # in no user's name
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
        """Remove those whose time is over, and tell after how many seconds the next one's is."""
        now = self._clock()
        for user, (_, ends_s) in list(self._files.items()):
            if ends_s <= now:
                self.remove(user)
        return min((ends_s - now for _, ends_s in self._files.values()), default=math.inf)

    def clear(self) -> None:
        """Remove all."""
        self._files.clear()
        with suppress(OSError):
            for path in list(self._root.iterdir()):
                with suppress(OSError):
                    path.unlink()
