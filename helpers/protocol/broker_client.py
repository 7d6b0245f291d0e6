"""The helpers' client of the broker: one request and one answer for each connection."""

from __future__ import annotations

import _socket as socket  # socket's own class is not needed here, and adds 5 ms to a helper's start
import time

from helpers.protocol.deadlines import ANSWER_TIMEOUT_S
from helpers.protocol.errors import BrokerUnavailableError, ProtocolError
from helpers.protocol.messages import MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, decode, encode, result_of

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from typing import Any


TELL_TIMEOUT_S = 0.5
"""Longest time, in seconds, that a session spends on a request whose answer it does not need."""


class BrokerRequest:
    """One request to the broker, which is sent at once.

    Args:
        socket_path: The broker's unix socket.
        request: The request, see `helpers.protocol.messages`.
        timeout_s: Longest wait for the whole answer, in seconds.

    Attributes:
        connection: The socket on which the answer arrives.

    Raises:
        BrokerUnavailableError: No process listens on the socket, or it accepts no request.
        ProtocolError: The request is too long for the protocol.
    """

    def __init__(self, socket_path: str, request: dict[str, Any], timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        line = encode(request)
        if len(line) > MAX_REQUEST_BYTES:
            msg = f"the request is longer than the {MAX_REQUEST_BYTES} bytes that the broker reads; shorten the command"
            raise ProtocolError(msg)
        self._deadline = time.monotonic() + timeout_s
        self._received = bytearray()
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection.settimeout(timeout_s)
        try:
            self.connection.connect(socket_path)
            self.connection.sendall(line)
        except OSError as exc:
            self.connection.close()
            msg = "the gateway's broker is not running; try again in a moment, or tell the gateway's operator"
            raise BrokerUnavailableError(msg) from exc

    def wait(self, patience_s: float | None = None) -> dict[str, Any] | None:
        """Wait for the answer.

        Args:
            patience_s: Seconds after which to return without an answer; None waits until the deadline.

        Returns:
            The result, or None if ``patience_s`` ended before the deadline.

        Raises:
            BrokerError: The broker answered with an error.
            BrokerUnavailableError: The broker closed the connection, or the deadline passed.
            ProtocolError: The answer is not valid.
        """
        until = self._deadline if patience_s is None else min(self._deadline, time.monotonic() + patience_s)
        while b"\n" not in self._received:
            left_s = until - time.monotonic()
            if left_s <= 0:
                if until < self._deadline:
                    return None
                self.close()
                msg = "the gateway's broker did not answer in time; try again in a moment"
                raise BrokerUnavailableError(msg)
            self.connection.settimeout(left_s)
            try:
                self._receive()
            except TimeoutError:
                continue
        self.close()
        return result_of(decode(bytes(self._received).split(b"\n", 1)[0]))

    def _receive(self) -> None:
        try:
            chunk = self.connection.recv(65536)
        except TimeoutError:
            raise
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
            msg = "the gateway's broker went away before it answered; try again"
            raise BrokerUnavailableError(msg)
        self._received += chunk
        if len(self._received) > MAX_ANSWER_BYTES:
            self.close()
            msg = f"the broker's answer is longer than {MAX_ANSWER_BYTES} bytes"
            raise ProtocolError(msg)

    def close(self) -> None:
        """Close the connection. The broker finishes its work; a mosh-server without a client ends after a minute."""
        self.connection.close()


def tell(socket_path: str, request: dict[str, Any]) -> None:
    """Send a request without waiting for the answer; do nothing if the broker does not accept it."""
    try:
        BrokerRequest(socket_path, request, TELL_TIMEOUT_S).close()
    except BrokerUnavailableError:
        return


def ask(socket_path: str, request: dict[str, Any], timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
    """Send a request and wait for the answer: see `BrokerRequest` for arguments and errors."""
    result = BrokerRequest(socket_path, request, timeout_s).wait()
    if result is None:  # pragma: no cover - only `wait` with a limit returns None
        msg = "no answer"
        raise BrokerUnavailableError(msg)
    return result
