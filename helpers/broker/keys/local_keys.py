"""The operator's own authorized_keys: GATEWAY_AUTHORIZED_KEYS_CONTENT and GATEWAY_AUTHORIZED_KEYS_PATH."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from helpers.broker.keys.key_file import KeyFile
from helpers.broker.keys.key_index import MAX_CONTENT_BYTES
from helpers.protocol.errors import PermissionDeniedError


class ContentKeys:
    """GATEWAY_AUTHORIZED_KEYS_CONTENT: the same keys for every user, from the setting's value.

    Args:
        content: An authorized_keys file.
    """

    def __init__(self, content: bytes) -> None:
        self._file = KeyFile(content, "content")

    async def read(self, user: str) -> KeyFile:
        """Return the content, for any user."""
        del user
        return self._file


class PathKeys:
    """GATEWAY_AUTHORIZED_KEYS_PATH: the same keys for every user, from a file that is read at each login.

    Args:
        path: An authorized_keys file that the broker's uid can read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self, user: str) -> KeyFile:
        """Read the file.

        Raises:
            PermissionDeniedError: The file cannot be read or is too large. This never permits any key.
        """
        del user
        try:
            content = _read_now(self._path)
        except OSError as exc:
            msg = f"GATEWAY_AUTHORIZED_KEYS_PATH {self._path} cannot be read by the gateway ({exc.strerror})"
            raise PermissionDeniedError(msg) from exc
        if len(content) > MAX_CONTENT_BYTES:
            msg = f"GATEWAY_AUTHORIZED_KEYS_PATH {self._path} is larger than {MAX_CONTENT_BYTES} bytes"
            raise PermissionDeniedError(msg)
        return KeyFile(content, "path")


def _read_now(path: Path) -> bytes:
    """Read a file without blocking, at most one byte more than `MAX_CONTENT_BYTES`.

    A FIFO without a writer would block the broker's event loop, and so all logins.

    Raises:
        OSError: The path cannot be read, or is not a file.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a file")
        return file.read(MAX_CONTENT_BYTES + 1)
