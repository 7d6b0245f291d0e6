"""Asks the supervisor, which is root, for a user's home directory: see `gatewayctl.homes`."""

from __future__ import annotations

import asyncio
import socket

ANSWER_TIMEOUT_S = 2.0
"""Longest wait, in seconds: the supervisor makes one directory."""


class HomeMaker:
    """The way to the supervisor.

    Args:
        sock: Our end of a SOCK_SEQPACKET pair.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Take the socket over."""
        sock.settimeout(0)
        self._sock, self._turn = sock, asyncio.Lock()

    async def make(self, uid: int) -> bool:
        """Have a home made for a uid, and tell whether there is one now."""
        loop = asyncio.get_running_loop()
        request = uid.to_bytes(4)
        async with self._turn:
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await loop.sock_sendall(self._sock, request)
                    # An answer that came too late for the one who asked is not ours.
                    while (answer := await loop.sock_recv(self._sock, len(request))) not in (request, bytes(4), b""):
                        pass
            except (OSError, TimeoutError):
                return False
        return answer == request
