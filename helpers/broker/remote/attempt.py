"""A login on the remote while it is under way: how the network treats it, and how to give it up."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

from helpers.broker.remote import tcp_info
from helpers.protocol.errors import RemoteLostError


class Attempt:
    """One attempt, of which two threads know: one makes the connection, the other may lose patience.

    Attributes:
        given_up: Whether nobody waits for it any more.
    """

    def __init__(self) -> None:
        """Begin without a connection."""
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._connected_s = 0.0
        self.given_up = False

    def connected(self, sock: socket.socket) -> None:
        """Note that TCP is connected, and that the SSH handshake begins.

        Raises:
            RemoteLostError: It was given up meanwhile.
        """
        with self._lock:
            self._socket, self._connected_s = sock, time.monotonic()
            self.check()

    def check(self) -> None:
        """Go on only where it was not given up.

        Raises:
            RemoteLostError: It was.
        """
        if self.given_up:
            msg = "another connection to the remote host was quicker"
            raise RemoteLostError(msg)

    def is_unlucky(self, after_s: float) -> bool:
        """Tell whether TCP is connected for some seconds and has lost packets."""
        with self._lock:
            if self._socket is None or time.monotonic() - self._connected_s < after_s:
                return False
            return tcp_info.read(self._socket).loses

    def succeeded(self) -> None:
        """Leave the connection alone from now on."""
        with self._lock:
            self._socket = None

    def give_up(self) -> None:
        """Hang up, if the connection is not made yet; its maker then fails."""
        with self._lock:
            self.given_up = True
            if self._socket is not None:
                with suppress(OSError):  # it has broken already
                    self._socket.shutdown(socket.SHUT_RDWR)
