"""The broker's protocol: one JSON object in each line, one request on each connection.

A request is ``{"op": NAME, ...}``; the answer is ``{"result": {...}}`` or
``{"error": {"code": ..., "message": ..., "status": ...}}``, whose message may be shown to the user. The result of
``authorized_keys`` is text instead, the lines for sshd, so that a program without JSON can copy it; to sshd, an error
is not a key line.

The peer's identity is never part of a request: the broker reads it from the kernel (``SO_PEERCRED``, unix(7)).
"""

from __future__ import annotations

from helpers.protocol.errors import GatewayError, ProtocolError
from helpers.protocol.fast_json import dumps, loads

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from typing import Any

BACKLOG = 512
"""Connections that may wait at a socket of the broker while it is busy or being replaced: more than the logins that
sshd's MaxStartups allows. Further ones fail at once (unix(7)), and so do their logins."""

MAX_REQUEST_BYTES = 64 * 1024
"""Longest request, in bytes: a certificate of OpenSSH's largest size (16 KiB, in base64) fits with room."""

MAX_ANSWER_BYTES = 2 * 1024 * 1024
"""Longest answer in JSON, in bytes: far above a session's answer, including a key's ``command=``."""

MAX_STATUS = 255
"""Largest exit status (wait(2))."""

MAX_NAME = 64
"""Longest user name, and longest value of LANG or LC_*, in characters."""

MAX_COLORS = 256
"""mosh-server supports at most 256 colours (mosh 1.4.0, ``-c``); for a terminal with more it gets 256."""

# Not re, whose import takes a fifth of the helper's time.
_ALPHANUMERIC = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_OF_NAMES = _ALPHANUMERIC | set("._-")
_OF_LOCALES = _ALPHANUMERIC | set("_.@-")
_OF_TERMS = _ALPHANUMERIC | set("._+-")


class BrokerError(GatewayError):
    """An error in the broker's answer, with the broker's code and status.

    Args:
        message: The broker's sentence.
        code: The stable code.
        status: The exit status, 1-255.
    """

    def __init__(self, message: str, code: str, status: int) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


def is_user_name(name: str) -> bool:
    """Check whether a user name is valid: ``[a-zA-Z0-9._-]{1,64}``, the whole string, ASCII.

    Any other is refused before a packet is sent to the remote.
    """
    return 0 < len(name) <= MAX_NAME and _OF_NAMES.issuperset(name)


def is_locale_value(value: str) -> bool:
    """Check whether a value of LANG or LC_* may be passed to mosh-server: ``[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}``."""
    return 0 < len(value) <= MAX_NAME and value[0] in _ALPHANUMERIC and _OF_LOCALES.issuperset(value)


def is_term(term: str) -> bool:
    """Check whether a TERM may be looked up: ``[A-Za-z0-9][A-Za-z0-9._+-]{0,63}``, the whole string, ASCII."""
    return 0 < len(term) <= MAX_NAME and term[0] in _ALPHANUMERIC and _OF_TERMS.issuperset(term)


def encode(message: dict[str, Any]) -> bytes:
    """Encode a message as one line, with its newline."""
    return dumps(message).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Decode one line.

    Args:
        line: The line, with or without its newline; only ASCII, as `encode` writes it.

    Returns:
        The JSON object in it.

    Raises:
        ProtocolError: The line is not one JSON object.
    """
    try:
        message = loads(line.decode("ascii"))
    except (ValueError, RecursionError) as exc:
        msg = "not a JSON line"
        raise ProtocolError(msg) from exc
    if not isinstance(message, dict):
        msg = "not a JSON object"
        raise ProtocolError(msg)
    return message


def error_answer(error: GatewayError) -> dict[str, Any]:
    """Return the answer for an error."""
    return {"error": {"code": error.code, "message": error.message, "status": error.status}}


def result_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the result in an answer.

    Raises:
        BrokerError: The answer is an error.
        ProtocolError: The answer is neither a result nor an error.
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
