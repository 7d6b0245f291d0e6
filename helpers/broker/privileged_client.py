"""Asks the supervisor for what takes root: see `gatewayctl.supervisor.privileged_server`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

from helpers.protocol.errors import ProtocolError
from helpers.protocol.messages import MAX_REQUEST_BYTES, decode, encode

ANSWER_TIMEOUT_S = 2.0
"""Longest wait, in seconds: the supervisor makes one directory, and writes one file."""


class PrivilegedClient:
    """The way to the supervisor.

    Args:
        sock: Our end of a SOCK_SEQPACKET pair.
        gone: Called when nobody has the other end any more: no login works then, until there is another broker.
    """

    def __init__(self, sock: socket.socket, gone: Callable[[], None]) -> None:
        """Take the socket over."""
        sock.settimeout(0)
        self._sock, self._gone, self._turn, self._number = sock, gone, asyncio.Lock(), 0

    async def make_home(self, user: str, uid: int, client: tuple[int, str | None] | None = None) -> str | None:
        """Have a user's home made.

        Args:
            user: The user's name.
            uid: The user's uid.
            client: Of a connection that any key opens, which must not be one too many: the process that sshd has for
                it, and the client's address, None where sshd does not tell.

        Returns:
            Why the login must not go on; None where it may, and there is a home now.
        """
        return await self._run({"user": user, "uid": uid, "client": client})

    async def remember(self, user: str, uid: int, lines: Sequence[bytes], seconds: float) -> str | None:
        """Have a user's home made, and the file written by which sshd lets the user in without asking us.

        Args:
            user: The user's name.
            uid: The user's uid.
            lines: What is to be in the file; where there are none, or they are too long, it is removed.
            seconds: How long it may stay.

        Returns:
            The same. Without the file sshd asks, and that is all.
        """
        errand = {"user": user, "uid": uid, "seconds": seconds}
        text = [line.decode("utf-8", "surrogateescape") for line in lines]
        if len(encode(errand | {"lines": text})) > MAX_REQUEST_BYTES - 64:
            text = []
        return await self._run(errand | {"lines": text})

    async def _run(self, errand: dict[str, Any]) -> str | None:
        async with self._turn:
            self._number += 1
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    return await self._exchange(errand | {"number": self._number})
            except (BrokenPipeError, ConnectionResetError):
                self._gone()
            except (OSError, TimeoutError, ProtocolError):
                pass
        return "the supervisor does not answer"

    async def _exchange(self, errand: dict[str, Any]) -> str | None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._sock, encode(errand))
        while said := await loop.sock_recv(self._sock, MAX_REQUEST_BYTES):
            answer = decode(said)
            # One that came too late for the one who asked is not ours.
            if answer.get("number") == errand["number"]:
                trouble = answer.get("trouble", "")
                return None if trouble is None else str(trouble)
        raise BrokenPipeError
