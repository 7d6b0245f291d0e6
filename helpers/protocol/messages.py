"""The broker's protocol: one JSON object a line, one request a connection.

A request is ``{"op": NAME, ...}``; the answer is ``{"result": {...}}`` or
``{"error": {"code": ..., "message": ..., "status": ...}}``, whose message may be shown to the user. The result of
``authorized_keys`` is text instead, the lines as sshd is to have them, so that a program that knows no JSON can hand it
on; sshd takes an error for no key line.
Who asks is never part of a request: the broker takes it from the kernel (``SO_PEERCRED``, unix(7)).
"""

from __future__ import annotations

from helpers.protocol.errors import GatewayError, ProtocolError
from helpers.protocol.fast_json import dumps, loads

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from typing import Any

BACKLOG = 512
"""Connections that wait at a socket of the broker's while it is busy or being replaced: more than sshd's MaxStartups
allows logins. One more is turned away at once (unix(7)), and its login with it."""

MAX_REQUEST_BYTES = 64 * 1024
"""Longest request, in bytes: a certificate of OpenSSH's largest size (16 KiB, in base64) fits with room."""

MAX_ANSWER_BYTES = 2 * 1024 * 1024
"""Longest answer in JSON, in bytes: far above what a session is told, a key's ``command=`` included."""

MAX_STATUS = 255
"""Largest exit status (wait(2))."""

MAX_NAME = 64
"""Longest user name, and longest value of LANG or LC_*, in characters."""

MAX_COLORS = 256
"""mosh-server knows 256 colours or fewer (mosh 1.4.0, ``-c``); a terminal with more is told 256."""

# Not re, whose import takes a fifth of the helper's time.
_ALPHANUMERIC = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_OF_NAMES = _ALPHANUMERIC | set("._-")
_OF_LOCALES = _ALPHANUMERIC | set("_.@-")
_OF_TERMS = _ALPHANUMERIC | set("._+-")


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
    """Tell whether a name is one: ``[a-zA-Z0-9._-]{1,64}``, the whole string, ASCII.

    Every other is refused before a packet leaves for the remote.
    """
    return 0 < len(name) <= MAX_NAME and _OF_NAMES.issuperset(name)


def is_locale_value(value: str) -> bool:
    """Tell whether a value of LANG or LC_* may be handed to mosh-server: ``[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}``."""
    return 0 < len(value) <= MAX_NAME and value[0] in _ALPHANUMERIC and _OF_LOCALES.issuperset(value)


def is_term(term: str) -> bool:
    """Tell whether a TERM may be looked for: ``[A-Za-z0-9][A-Za-z0-9._+-]{0,63}``, the whole string, ASCII."""
    return 0 < len(term) <= MAX_NAME and term[0] in _ALPHANUMERIC and _OF_TERMS.issuperset(term)


def encode(message: dict[str, Any]) -> bytes:
    """Write a message as one line, newline included."""
    return dumps(message).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Read one line.

    Args:
        line: The line, with or without its newline; ASCII alone, as `encode` writes it.

    Returns:
        The JSON object in it.

    Raises:
        ProtocolError: It is not one JSON object.
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
