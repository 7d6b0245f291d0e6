"""GATEWAY_PASSWORDS: parsed, and hashed at once. sshd compares the hashes; the plain text is not kept.

Source: crypt(5) for the formats of hashed passwords; the limit of 72 bytes is that of the bcrypt algorithm.
"""

from __future__ import annotations

import re
import secrets
import string
from typing import TYPE_CHECKING

from helpers.broker.accounts.uid_table import RESERVED_NAMES
from helpers.protocol.errors import SettingsError
from helpers.protocol.messages import is_user_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROUNDS = 10
"""bcrypt's cost, as a power of two: 50 ms of one core for each stranger's attempt, and for each login."""

MAX_PASSWORD_BYTES = 72
"""bcrypt ignores further bytes; a longer password would be truncated silently."""

_WORD = "[./A-Za-z0-9]"
# yescrypt, gost-yescrypt, scrypt, bcrypt, sha512crypt, sha256crypt: strong, or at least acceptable, in crypt(5). First
# the setting, with salt and cost, then the digest.
_HASHED = re.compile(
    rf"(?P<setting>\$g?y\${_WORD}+\${_WORD}{{0,86}}\$|\$7\${_WORD}{{11,97}}\$|\$5\$(?:rounds=\d+\$)?{_WORD}{{1,16}}\$)"
    rf"{_WORD}{{43}}|(?P<long>\$6\$(?:rounds=\d+\$)?{_WORD}{{1,16}}\$){_WORD}{{86}}"
    rf"|(?P<bcrypt>\$2[aby]\$\d\d\${_WORD}{{22}}){_WORD}{{31}}",
    re.ASCII,
)
_LOOKS_HASHED = re.compile(r"\$[0-9a-z]{1,8}\$", re.ASCII)
# The rest of "$2b$12$..." in double quotes, where a shell expands $2, $1 and $name; of other kinds of hashes the part
# from the first dot or slash on remains, be it only one character, and the number of "rounds=N".
_SHELL_EXPANDED = re.compile(rf"[abxy]\d(?:[./$].*)?|(?:=\d+)?[./](?:{_WORD}|\$)*|=\d+", re.ASCII)
# With a salt that begins with a digit, a shell leaves most of it, which may be a password as well.
_MAYBE_EXPANDED = re.compile(rf"{_WORD}{{21,}}", re.ASCII)
_DIGITS = "./" + string.digits + string.ascii_letters
_DOUBLED = re.compile(r"\$\$[0-9a-z]{1,8}\$\$", re.ASCII)
# A new pair begins on a new line, or at a comma before a name and a colon; the comma in sha512crypt's "rounds=N" has
# no colon behind it.
_PAIRS = re.compile(r",?\s*[\r\n]\s*|,(?=[^,:\r\n]*:)")


def hashed_passwords(text: str) -> dict[str, str]:
    """Parse pairs and hash passwords that are not hashed yet.

    Args:
        text: ``NAME:PASSWORD`` pairs, on separate lines or separated by commas. A password may be hashed, in the format
            of crypt(5) and ``gatewayctl hash-password``; one with a comma or a colon must be hashed.

    Returns:
        User name to hashed password.

    Raises:
        SettingsError: A pair is none, a name cannot log in or comes twice, or a password is empty or too long.
    """
    return {
        name: password if _HASHED.fullmatch(password) else hash_password(password) for name, password in pairs(text)
    }


def placeholder_hashes_for(hashed: Iterable[str]) -> list[str]:
    """Make placeholder hashes, with which rejecting a name without a password costs the same as one with a password.

    Args:
        hashed: The hashes of users with a password.

    Returns:
        One for each, of the same kind and cost, with a random digest that matches no password.
    """
    made = []
    for text in hashed:
        match = _HASHED.fullmatch(text)
        assert match is not None  # noqa: S101 - it comes from `hashed_passwords`
        setting = next(filter(None, match.groups()))
        made.append(setting + "".join(secrets.choice(_DIGITS) for _ in text[len(setting) :]))
    return made


def hash_password(password: str) -> str:
    """Hash one password with bcrypt.

    Raises:
        ValueError: See `encoded`.
    """
    import bcrypt  # noqa: PLC0415 - most gateways have no passwords

    return bcrypt.hashpw(encoded(password), bcrypt.gensalt(ROUNDS)).decode("ascii")


def encoded(password: str) -> bytes:
    """Encode a password as a client sends it to sshd (RFC 4252, 8).

    Raises:
        ValueError: The password is empty, too long, not UTF-8, or contains a NUL; the sentence does not quote it.
    """
    try:
        text = password.encode("utf-8")
    except UnicodeEncodeError:
        text = b""
    if not 0 < len(text) <= MAX_PASSWORD_BYTES or b"\0" in text:
        msg = f"a password has 1 to {MAX_PASSWORD_BYTES} bytes of UTF-8"
        raise ValueError(msg)
    return text


def pairs(text: str) -> Iterator[tuple[str, str]]:
    """Parse pairs: see `hashed_passwords`.

    Raises:
        SettingsError: A pair is none, a name cannot log in or comes twice, or a password is empty or too long.
    """
    seen: set[str] = set()
    parts = list(filter(None, _PAIRS.split(text.strip())))
    for number, pair in enumerate(parts or [""], start=1):
        name, colon, password = pair.strip().partition(":")
        if not colon or not is_user_name(name) or name in RESERVED_NAMES:
            raise _wrong(
                number, "it must be NAME:PASSWORD, with a name that can log in; pairs stand on lines or commas apart"
            )
        if name in seen:
            raise _wrong(number, f"{name} has one already")
        if not _HASHED.fullmatch(password):
            _check_text(number, name, password)
        seen.add(name)
        yield name, password


def doubtful(text: str) -> list[str]:
    """List the names whose password may be the rest of a hash that a shell has expanded, or a long password.

    Args:
        text: As for `hashed_passwords`; valid.
    """
    return [name for name, password in pairs(text) if _MAYBE_EXPANDED.fullmatch(password)]


def _check_text(number: int, name: str, password: str) -> None:
    if _DOUBLED.match(password):
        raise _wrong(
            number, "its hash has each $ twice, as compose files want it and nothing else does: write each once"
        )
    if _LOOKS_HASHED.match(password):
        raise _wrong(number, "it looks hashed, and is cut short or of no kind that is taken: crypt(5)")
    if _SHELL_EXPANDED.fullmatch(password):
        raise _wrong(
            number, "it looks like what a shell leaves of a hash in double quotes: use single quotes, or give it hashed"
        )
    if "," in password or ":" in password:
        raise _wrong(number, "a password with a comma or a colon must be given hashed: gatewayctl hash-password")
    try:
        encoded(password)
    except ValueError as exc:
        msg = f"GATEWAY_PASSWORDS: the password of {name} cannot be used: {exc}"
        raise SettingsError(msg) from None


def _wrong(number: int, reason: str) -> SettingsError:
    return SettingsError(f"GATEWAY_PASSWORDS: pair {number} is wrong: {reason}")
