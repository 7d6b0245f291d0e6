"""The broker's protocol: one JSON object a line, one request a connection.

A request is ``{"op": NAME, ...}``; the answer is ``{"result": {...}}`` or
``{"error": {"code": ..., "message": ..., "status": ...}}``, whose message may be shown to the user.
Who asks is never part of a request: the broker takes it from the kernel (``SO_PEERCRED``, unix(7)).
"""

from __future__ import annotations

import json
import re

from helpers.errors import GatewayError, ProtocolError

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from typing import Any

MAX_REQUEST_BYTES = 64 * 1024
"""Longest request, in bytes: a certificate of OpenSSH's largest size (16 KiB, in base64) fits with room."""

MAX_ANSWER_BYTES = 2 * 1024 * 1024
"""Longest answer, in bytes: the key lines of a 1 MiB authorized_keys file, escaped as JSON."""

ANSWER_TIMEOUT_S = 20.0
"""Longest wait for an answer, in seconds: below LoginGraceTime (30 s), above every deadline of the broker."""

MAX_STATUS = 255
"""Largest exit status (wait(2))."""

USER_NAME = re.compile(r"[a-zA-Z0-9._-]{1,64}", re.ASCII)
"""What a user name is, as a whole string; everything else is refused before a packet leaves for the remote."""

MAX_COLORS = 256
"""mosh-server knows 256 colours or fewer (mosh 1.4.0, ``-c``); a terminal with more is told 256."""

LOCALE_VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}", re.ASCII)
"""What a value of LANG or LC_* is, as a whole string, where it is handed to mosh-server."""


class BrokerError(GatewayError):
    """An error that the broker answered, with the broker's own code and status.

    Args:
        message: The broker's sentence.
        code: The stable code.
        status: The exit status, 1-255.
    """

    def __init__(self, message: str, code: str, status: int) -> None:
        """Take over the code and the status."""
        super().__init__(message)
        self.code = code
        self.status = status


def is_user_name(name: str) -> bool:
    """Tell whether a name may be looked up at all: ``[a-zA-Z0-9._-]{1,64}``, the whole string, ASCII."""
    return USER_NAME.fullmatch(name) is not None


def encode(message: dict[str, Any]) -> bytes:
    """Write a message as one line, newline included."""
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Read one line.

    Args:
        line: The line, with or without its newline.

    Returns:
        The JSON object in it.

    Raises:
        ProtocolError: It is not one JSON object.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as exc:
        msg = "not a JSON line"
        raise ProtocolError(msg) from exc
    if not isinstance(message, dict):
        msg = "not a JSON object"
        raise ProtocolError(msg)
    return message


def error_answer(error: GatewayError) -> dict[str, Any]:
    """Make the answer that carries an error to the asker."""
    return {"error": {"code": error.code, "message": error.message, "status": error.status}}


def result_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Take the result out of an answer.

    Raises:
        BrokerError: The answer is an error.
        ProtocolError: It is neither a result nor an error.
    """
    result, error = answer.get("result"), answer.get("error")
    if isinstance(result, dict):
        return result
    if isinstance(error, dict):
        status = error.get("status")
        raise BrokerError(
            str(error.get("message", "no reason given")),
            str(error.get("code", "internal")),
            status if isinstance(status, int) and 0 < status <= MAX_STATUS else GatewayError.status,
        )
    msg = "the broker's answer is neither a result nor an error"
    raise ProtocolError(msg)
