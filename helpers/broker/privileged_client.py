"""Requests privileged operations from the supervisor: see `gatewayctl.supervisor.privileged_server`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.broker.client_traffic import Traffic
from helpers.protocol.errors import ProtocolError
from helpers.protocol.messages import MAX_REQUEST_BYTES, decode, encode

ANSWER_TIMEOUT_S = 2.0
"""Longest wait, in seconds: the supervisor makes one directory, and writes one file."""


@dataclass(frozen=True)
class SshdConnection:
    """What sshd logged about a connection.

    Attributes:
        client: The client's address and port; None if unknown.
        ended: How it ended: ``closed`` by the client with a goodbye, ``lost``, or ``stopped`` by the gateway; None
            before, or if unknown.
        traffic: The bytes of a client that has left; None before, or if unknown.
    """

    client: str | None = None
    ended: str | None = None
    traffic: Traffic | None = None


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

    async def watch_session(self, pid: int, monitor: int) -> None:
        """Have the supervisor note how a session ends.

        Args:
            pid: The session's process.
            monitor: The pid of sshd's process for its connection.
        """
        await self._answer({"watch": pid, "connection": monitor})

    async def connection(self, monitor: int, session: int | None = None) -> SshdConnection:
        """Ask what sshd logged about a connection.

        Args:
            monitor: The pid of sshd's process for it.
            session: The process of a session that has ended: how the connection had ended before the session did,
                instead of how it has ended by now.

        Returns:
            What is known of it.
        """
        answer = await self._answer({"connection": monitor, "session": session})
        traffic = answer.get("traffic")
        return SshdConnection(answer.get("client"), answer.get("ended"), None if traffic is None else Traffic(*traffic))

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
        trouble = (await self._answer(request)).get("trouble", "the supervisor does not answer")
        return None if trouble is None else str(trouble)

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        async with self._turn:
            self._number += 1
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    return await self._exchange(request | {"number": self._number})
            except (BrokenPipeError, ConnectionResetError):
                self._gone()
            except (OSError, TimeoutError, ProtocolError):
                pass
        return {}

    async def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._sock, encode(request))
        while said := await loop.sock_recv(self._sock, MAX_REQUEST_BYTES):
            answer = decode(said)
            # An answer with another number came too late for an earlier request.
            if answer.get("number") == request["number"]:
                return answer
        raise BrokenPipeError
