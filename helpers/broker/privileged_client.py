"""Requests privileged operations from the supervisor: see `gatewayctl.supervisor.privileged_server`."""

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
    """The client of the supervisor's privileged server.

    Args:
        sock: Our end of a SOCK_SEQPACKET pair.
        gone: Called when the other end is closed: no login works then, until there is another broker.
    """

    def __init__(self, sock: socket.socket, gone: Callable[[], None]) -> None:
        sock.settimeout(0)
        self._sock, self._gone, self._turn, self._number = sock, gone, asyncio.Lock(), 0

    async def make_home(self, user: str, uid: int, client: tuple[int, str | None] | None = None) -> str | None:
        """Have a user's home made.

        Args:
            user: The user's name.
            uid: The user's uid.
            client: Counts a connection against the limits for unproved clients: the pid of sshd's process for it, and
                the client's address, None if sshd does not pass it on. None does not count it.

        Returns:
            Why the login must not go on; None if it may, and the home exists.
        """
        return await self._run({"user": user, "uid": uid, "client": client})

    async def remember(self, user: str, uid: int, lines: Sequence[bytes], seconds: float) -> str | None:
        """Have a user's home made, and the file written from which sshd accepts the user's keys without asking us.

        Args:
            user: The user's name.
            uid: The user's uid.
            lines: The file's lines; if there are none, or they are too long, the file is removed.
            seconds: How long the file may stay.

        Returns:
            As `make_home` does. A failure to write the file is no error: sshd then asks the broker.
        """
        request = {"user": user, "uid": uid, "seconds": seconds}
        text = [line.decode("utf-8", "surrogateescape") for line in lines]
        if len(encode(request | {"lines": text})) > MAX_REQUEST_BYTES - 64:
            text = []
        return await self._run(request | {"lines": text})

    async def _run(self, request: dict[str, Any]) -> str | None:
        async with self._turn:
            self._number += 1
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    return await self._exchange(request | {"number": self._number})
            except (BrokenPipeError, ConnectionResetError):
                self._gone()
            except (OSError, TimeoutError, ProtocolError):
                pass
        return "the supervisor does not answer"

    async def _exchange(self, request: dict[str, Any]) -> str | None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._sock, encode(request))
        while said := await loop.sock_recv(self._sock, MAX_REQUEST_BYTES):
            answer = decode(said)
            # An answer with another number came too late for an earlier request.
            if answer.get("number") == request["number"]:
                trouble = answer.get("trouble", "")
                return None if trouble is None else str(trouble)
        raise BrokenPipeError
