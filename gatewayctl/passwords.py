"""GATEWAY_PASSWORDS: taken apart, and hashed at once; sshd compares, nobody keeps the text.

Source: crypt(5) for the forms of hashed passwords; bcrypt's limit of 72 bytes is the algorithm's own.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

from helpers.broker.users import RESERVED_NAMES
from helpers.errors import SettingsError
from helpers.protocol import is_user_name

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 10
"""bcrypt's cost, as a power of two: 50 ms of one core for each try of a stranger's, and for each login."""

MAX_PASSWORD_BYTES = 72
"""bcrypt reads no further; a longer password would be cut in silence."""

# yescrypt, gost-yescrypt, scrypt, bcrypt, sha512crypt, sha256crypt: what crypt(5) calls strong, or at least acceptable.
_HASHED = re.compile(r"\$(?:y|gy|7|2[by]|6|5)\$[A-Za-z0-9./$=,-]{8,200}", re.ASCII)
# A new pair begins at a comma that a name and a colon follow; sha512crypt's "rounds=N" has no colon.
_PAIRS = re.compile(r",(?=[^,:]*:)")


def hashed_passwords(text: str) -> dict[str, str]:
    """Take pairs apart and hash what is not hashed yet.

    Args:
        text: ``NAME:PASSWORD`` pairs with commas between. A password may be given hashed, as crypt(5) and
            ``gatewayctl hash-password`` write it; one with a comma or a colon must be.

    Returns:
        User name to hashed password.

    Raises:
        SettingsError: A pair is none, a name cannot log in or comes twice, or a password is empty or too long.
    """
    return {name: _hashed(name, password) for name, password in pairs(text)}


def unknown_password() -> str:
    """Hash a password that nobody knows, so that a name without one takes as long to refuse as a wrong password."""
    return hash_password(secrets.token_urlsafe(32))


def hash_password(password: str) -> str:
    """Hash one password with bcrypt.

    Raises:
        ValueError: It is empty, too long, or has a NUL.
    """
    import bcrypt  # noqa: PLC0415 - most gateways have no passwords

    encoded = password.encode("utf-8")
    if not 0 < len(encoded) <= MAX_PASSWORD_BYTES or b"\0" in encoded:
        msg = f"a password has 1 to {MAX_PASSWORD_BYTES} bytes"
        raise ValueError(msg)
    return bcrypt.hashpw(encoded, bcrypt.gensalt(ROUNDS)).decode("ascii")


def pairs(text: str) -> Iterator[tuple[str, str]]:
    """Take pairs apart: see `hashed_passwords`.

    Raises:
        SettingsError: A pair is none, or a name cannot log in or comes twice.
    """
    seen: set[str] = set()
    for number, pair in enumerate(_PAIRS.split(text.strip()), start=1):
        name, colon, password = pair.strip().partition(":")
        if not colon or not is_user_name(name) or name in RESERVED_NAMES:
            raise _wrong(number, "it must be NAME:PASSWORD, with a name that can log in")
        if name in seen:
            raise _wrong(number, f"{name} has one already")
        if not _HASHED.fullmatch(password) and ("," in password or ":" in password):
            raise _wrong(number, "a password with a comma or a colon must be given hashed: gatewayctl hash-password")
        seen.add(name)
        yield name, password


def _hashed(name: str, password: str) -> str:
    if _HASHED.fullmatch(password):
        return password
    try:
        return hash_password(password)
    except ValueError as exc:
        msg = f"GATEWAY_PASSWORDS: the password of {name} cannot be used: {exc}"
        raise SettingsError(msg) from None


def _wrong(number: int, reason: str) -> SettingsError:
    return SettingsError(f"GATEWAY_PASSWORDS: pair {number} is wrong: {reason}")
