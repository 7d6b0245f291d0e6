"""Agents that ssh-agent(1) is not."""

from __future__ import annotations

import base64
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class SilentAgent:
    """An agent that has a key, and never signs.

    Args:
        path: Its socket.
        key: The public key, as a line of authorized_keys.
    """

    def __init__(self, path: Path, key: str) -> None:
        """Serve, until ``close``."""
        blob = base64.b64decode(key.split()[1])
        self._identities = struct.pack(">BI", 12, 1) + struct.pack(">I", len(blob)) + blob + struct.pack(">I", 0)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(100)
        self._open: list[socket.socket] = [self._listener]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                self._open.append(connection)
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with suppress(OSError), connection.makefile("rb") as stream:
            while header := stream.read(4):
                request = stream.read(int.from_bytes(header))
                # RFC draft-ietf-sshm-ssh-agent: 11 asks for the keys, 13 for a signature; everything else fails.
                if request[:1] == b"\x0b":
                    connection.sendall(struct.pack(">I", len(self._identities)) + self._identities)
                elif request[:1] != b"\x0d":
                    connection.sendall(b"\0\0\0\1\5")

    def close(self) -> None:
        """Hang up on everybody."""
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
