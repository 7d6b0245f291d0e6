"""A login on the remote in progress: whether it loses packets, and how to give it up."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

from helpers.broker.remote import tcp_info
from helpers.protocol.errors import RemoteLostError


class Attempt:
    """One attempt, shared by two threads: one makes the connection, the other may give it up.

    Attributes:
        given_up: Whether the result is no longer needed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._connected_s = 0.0
        self.given_up = False

    def connected(self, sock: socket.socket) -> None:
        """Record that TCP is connected, and that the SSH handshake begins.

        Raises:
            RemoteLostError: The attempt was given up meanwhile.
        """
        with self._lock:
            self._socket, self._connected_s = sock, time.monotonic()
            self.check()

    def check(self) -> None:
        """Fail if the attempt was given up.

        Raises:
            RemoteLostError: It was given up.
        """
        if self.given_up:
            msg = "another connection to the remote host was quicker"
            raise RemoteLostError(msg)

    def is_losing(self, after_s: float) -> bool:
        """Check whether TCP has been connected for so many seconds and has lost packets."""
        with self._lock:
            if self._socket is None or time.monotonic() - self._connected_s < after_s:
                return False
            return tcp_info.read(self._socket).lost_packets

    def succeeded(self) -> None:
        """Record that the connection is made: `give_up` no longer closes it."""
        with self._lock:
            self._socket = None

    def give_up(self) -> None:
        """Close the socket if the connection is not made yet; the connecting thread then fails."""
        with self._lock:
            self.given_up = True
            if self._socket is not None:
                with suppress(OSError):  # the connection is broken already
                    self._socket.shutdown(socket.SHUT_RDWR)
