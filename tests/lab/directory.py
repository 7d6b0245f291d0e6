"""The directory of a lab: in use while its process lives, swept up by the next lab if that was killed."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Not /tmp: sshd refuses helpers and keys below a directory that others may write to.
_PARENT = Path("/run")
_PREFIX = "smg-lab-"


@contextmanager
def own_directory() -> Iterator[Path]:
    """Make a directory that is known to be in use for as long as this process lives, and remove it."""
    directory = _PARENT / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(3)}"
    # Locked before it has the name that ``sweep`` of a lab starting at the same time looks for.
    unfinished = directory.with_name(f".{directory.name}")
    unfinished.mkdir(mode=0o755)
    with (unfinished / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        unfinished.rename(directory)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def sweep() -> list[Path]:
    """Remove the directories of labs that were killed; they have nothing else left. Returns what was removed."""
    removed = []
    for lock_file in _PARENT.glob(f"{_PREFIX}*/lock"):
        with suppress(OSError), lock_file.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_file.parent, ignore_errors=True)
            removed.append(lock_file.parent)
    return removed
