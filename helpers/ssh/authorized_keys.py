"""Parses the lines of an authorized_keys file, and prints those that are passed to sshd for one offered key.

sshd enforces the options of the printed lines, as for a file, with one exception: ForceCommand in sshd_config overrides
a line's ``command=``. So that command is passed to the session in an environment variable that clients cannot set, and
every ``environment=`` of the file itself is omitted.

Three rules ensure that no key is accepted that OpenSSH would refuse:

- A line is parsed as OpenSSH parses it and printed from the result, so that sshd cannot read it differently.
- The first line that sshd accepts is used, with its options. A line that OpenSSH refuses is skipped, as OpenSSH does. A
  line that only we refuse ends the file; otherwise a line below it, with fewer restrictions, would be used instead.
- A line that one version of OpenSSH accepts and another refuses, or reads differently, ends the file too. The gateway
  cannot detect the remote's version. If the line were printed, it would permit a key that one version refuses; if it
  were skipped, a line below it would be used that the other version does not reach. Such lines are a key whose blob has
  a short name for its type, which OpenSSH accepts up to 9.8, and the options in `helpers.ssh.openssh_versions`.

Source: OpenSSH 9.2 to 10.5: auth2-pubkeyfile.c, auth-options.c (sshauthopt_parse), sshkey.c (sshkey_read),
authfile.c (sshkey_advance_past_options), misc.c (opt_flag, opt_match, opt_dequote).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from helpers.protocol.errors import ProtocolError
from helpers.ssh.certificate import (
    CERTIFICATE_TYPES,
    KEY_NAMES,
    PLAIN_TYPES,
    Certificate,
    canonical_key,
    parse_certificate,
)
from helpers.ssh.openssh_versions import is_read_alike

CARRIER = "GATEWAY_COMMAND"
"""Environment variable that passes a ``command=`` to the session; PermitUserEnvironment permits only this one."""

MAX_OFFERED_CHARS = 128 * 1024
"""Longest key that can be offered, in base64 characters: sshd passes it as an argument (Linux, MAX_ARG_STRLEN)."""

MAX_COMMAND_BYTES = 24 * 1024
"""Longest ``command=``, in bytes: its base64 fits into one environment variable (128 KiB on Linux) and into a request
to the broker."""

EMPTY_COMMAND = "="
"""The value for ``command=""``, which runs nothing: an empty variable is easily mistaken for one that is unset, and
then a shell would start."""

_ENVIRONMENT_MAX = 1024  # auth-options.h, SSH_AUTHOPT_ENV_MAX
_NEGATABLE = b"port-forwarding agent-forwarding x11-forwarding touch-required verify-required pty user-rc".split()
_FLAGS = frozenset({b"restrict", b"cert-authority", *_NEGATABLE, *(b"no-" + name for name in _NEGATABLE)})
_ONCE = frozenset({b"command", b"principals", b"from"})
_VALUED = frozenset({*_ONCE, b"expiry-time", b"environment", b"permitopen", b"permitlisten", b"tunnel"})

_BLANKS = b" \t"
_OPTION_NAME = re.compile(rb"[A-Za-z0-9-]*+")
_SKIPPED_IN_BASE64 = b"\n\v\f\r"  # b64_pton skips isspace(3); blanks end the word before it
_ENVIRONMENT_NAME = re.compile(rb"[A-Za-z0-9_]+")
_KEY = re.compile(rb"[ \t]*+([^ \t]++)[ \t]++([^ \t]++)")
# None of these expressions backtracks: *+ and ++ are possessive.
_OPTIONS = re.compile(rb'(?:[^ \t"\\]++|\\"?+|"(?:[^"\\]++|\\"?+)*+")*+')
_JOINED = re.compile(rb"\\n[^\n]*(?:ssh-|ecdsa-|AAAA)")
_UNPRINTABLE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # a tab between quotes is text


@dataclass(frozen=True)
class OfferedKey:
    """A key that a client offers, as sshd passes it to AuthorizedKeysCommand.

    Attributes:
        key_type: sshd's ``%t``.
        blob: sshd's ``%k`` in wire format.
        certificate: The certificate's content; None for a plain key.
    """

    key_type: str
    blob: bytes
    certificate: Certificate | None = None

    @property
    def wanted(self) -> bytes:
        """The key that a line must have, canonical: this one, or that of the authority that signed it."""
        return self.blob if self.certificate is None else self.certificate.signature_key

    @property
    def wanted_line(self) -> bytes:
        """That key in the format of a line, without options."""
        key_type, _ = canonical_key(self.wanted)
        return key_type.encode() + b" " + base64.b64encode(self.wanted)


@dataclass(frozen=True)
class _Option:
    name: bytes
    value: bytes | None = None

    def __bytes__(self) -> bytes:
        return self.name if self.value is None else self.name + b'="' + self.value.replace(b'"', b'\\"') + b'"'


class BadLineError(Exception):
    """OpenSSH itself refuses this line, for this key, and continues with the next."""


class LastLineError(Exception):
    """A version of OpenSSH may accept this line, and we do not: it ends the file for its key."""


@dataclass(frozen=True, slots=True)
class KeyLine:
    """A parsed line.

    Attributes:
        options: The options to print, joined, without ``environment=``.
        command: The value of ``command=``; None if there is none.
        is_printable: Whether all options may be printed.
    """

    options: bytes
    command: bytes | None
    is_printable: bool

    def printed_for(self, offered: OfferedKey) -> bytes:
        """Print the line for sshd.

        Args:
            offered: The line's key, or a certificate that the line's authority has signed.

        Raises:
            BadLineError: The certificate forces another command than the line.
            LastLineError: The line must not be printed, or its command is too long.
        """
        command = self.command
        if offered.certificate is not None and offered.certificate.forced_command is not None:
            if command not in {None, offered.certificate.forced_command}:
                raise BadLineError  # sshauthopt_merge: "forced command options do not match"
            command = offered.certificate.forced_command
        if not self.is_printable or (command is not None and len(command) > MAX_COMMAND_BYTES):
            raise LastLineError
        carrier = (
            b"" if command is None else b'environment="%s=%s"' % (CARRIER.encode(), encode_command(command).encode())
        )
        return b" ".join(filter(None, (b",".join(filter(None, (self.options, carrier))), offered.wanted_line)))


def parse_offered_key(key_type: str, base64_blob: str) -> OfferedKey:
    """Parse the key that sshd asks about.

    Args:
        key_type: sshd's ``%t``, such as ``ssh-ed25519`` or ``ssh-ed25519-cert-v01@openssh.com``.
        base64_blob: sshd's ``%k``, at most `MAX_OFFERED_CHARS`.

    Returns:
        The key; for a certificate, with its authority and its forced command.

    Raises:
        ProtocolError: The type is not supported, or the blob is not one complete key or user certificate of that type.
    """
    blob = _decode_base64(base64_blob.encode("utf-8", "replace")) if len(base64_blob) <= MAX_OFFERED_CHARS else None
    if blob is None:
        msg = "the offered key is not in base64, or too long"
        raise ProtocolError(msg)
    if key_type in CERTIFICATE_TYPES:
        return OfferedKey(key_type, blob, parse_certificate(key_type, blob))
    if key_type not in PLAIN_TYPES or canonical_key(blob) != (key_type, blob):
        msg = "the offered key is of a type that is not served, or of another type than its name"
        raise ProtocolError(msg)
    return OfferedKey(key_type, blob)


def read_line(line: bytes) -> tuple[bytes, bool, KeyLine | None]:
    """Parse a line of an authorized_keys file.

    Args:
        line: The line without its newline.

    Returns:
        Its key, canonical; whether it is an authority's, for certificates only; and the parsed line, or None if
        versions of OpenSSH differ on it, and it ends the file for this key.

    Raises:
        BadLineError: The line has no key, or every version refuses it.
    """
    line = line.partition(b"\0")[0].lstrip(_BLANKS)  # in OpenSSH a line is a C string
    if line.startswith(b"#"):
        raise BadLineError
    key, end = _find_key(line)
    if key is None:
        raise BadLineError
    options = _read_options(line[:end])
    is_authority = any(option.name == b"cert-authority" for option in options)
    if key.has_short_name or not all(is_read_alike(option.name, option.value or b"") for option in options):
        return key.blob, is_authority, None
    command = next((option.value for option in options if option.name == b"command"), None)
    printed = [option for option in options if option.name != b"environment"]
    is_printable = not any(_UNPRINTABLE.search(option.value or b"") for option in printed)
    return key.blob, is_authority, KeyLine(b",".join(map(bytes, printed)), command, is_printable)


def faults(content: bytes) -> Iterator[tuple[int, str]]:
    """Find the lines of an authorized_keys file that cannot permit any key.

    Args:
        content: The file, any bytes.

    Yields:
        The line's number, from 1 on, and the reason.
    """
    for number, raw in enumerate(content.split(b"\n"), start=1):
        line = raw.partition(b"\0")[0].lstrip(_BLANKS)
        if not line.rstrip() or line.startswith(b"#"):
            continue
        if line.startswith(b"\xef\xbb\xbf"):
            yield number, "it begins with a byte order mark, which OpenSSH takes for part of the line"
        elif _JOINED.search(line):
            yield number, r"it has \n where a new line should begin, so what follows is a comment"
        elif (reason := _fault(line)) is not None:
            yield number, reason


def _fault(line: bytes) -> str | None:
    key, end = _find_key(line)
    if key is None:
        quoted = ", and it begins with a quotation mark" if line[:1] in {b'"', b"'"} else ""
        return f"it has no key of a type that is served{quoted}"
    try:
        options = _read_options(line[:end])
    except BadLineError:
        return "its options are not ones that OpenSSH takes"
    if key.has_short_name or not all(is_read_alike(option.name, option.value or b"") for option in options):
        return "versions of OpenSSH read it differently"
    return None


def with_expiry(line: bytes, expires: datetime) -> bytes:
    """Add an expiry time to a line; an earlier one in the line remains effective (auth-options.c, ``expiry-time``).

    Args:
        line: A line from `KeyLine.printed_for`.
        expires: The last second in which it is valid; its zone is UTC.
    """
    # No option has the name of a key type.
    has_options = line.partition(b" ")[0] not in KEY_NAMES
    return b'expiry-time="%s"%s%s' % (expires.strftime("%Y%m%d%H%M%SZ").encode(), b"," if has_options else b" ", line)


def encode_command(command: bytes) -> str:
    """Encode a command as the value of `CARRIER`: base64, or `EMPTY_COMMAND`; never an empty string."""
    return base64.b64encode(command).decode("ascii") or EMPTY_COMMAND


def decode_command(value: str) -> str:
    """Decode the value of `CARRIER`.

    Args:
        value: The output of `encode_command`.

    Returns:
        The command; bytes that are not UTF-8 as surrogates (``surrogateescape``), as in ``os.environ``.

    Raises:
        ProtocolError: The value is not valid, for example empty. Then nothing may run, in particular no shell.
    """
    command = b"" if value == EMPTY_COMMAND else _decode_base64(value.encode("utf-8", "replace")) or None
    if command is None or len(command) > MAX_COMMAND_BYTES or b"\0" in command:
        msg = "the command that the key is bound to did not arrive whole"
        raise ProtocolError(msg)
    return command.decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class _Key:
    blob: bytes
    has_short_name: bool


def _find_key(line: bytes) -> tuple[_Key | None, int]:
    """Find a line's key, and the end of the options before it."""
    key, end = _read_key(line, 0), 0
    if key is None and (words := _OPTIONS.match(line)):
        end = words.end()
        key = _read_key(line, end)
    return key, end


def _read_key(line: bytes, start: int) -> _Key | None:
    """Parse ``keytype base64`` as sshkey_read does; return the key in its canonical form, or None."""
    match = _KEY.match(line, start)
    if match is None or (key_type := KEY_NAMES.get(match[1])) is None:
        return None
    blob = _decode_base64(match[2].translate(None, _SKIPPED_IN_BASE64))
    for has_short_name in (False, True):
        try:
            found_type, canonical = canonical_key(blob or b"", short_names=has_short_name)
        except ProtocolError:
            continue
        return _Key(canonical, has_short_name) if found_type == key_type else None
    return None


def _decode_base64(text: bytes) -> bytes | None:
    """Decode base64 in its canonical form; None for anything else, which b64_pton refuses."""
    try:
        decoded = base64.b64decode(text)
    except binascii.Error:
        return None
    return decoded if base64.b64encode(decoded) == text else None


def _read_options(text: bytes) -> list[_Option]:
    """Parse a line's options as sshauthopt_parse does: names in lower case, without empty options (``,,``)."""
    options: list[_Option] = []
    seen: set[bytes] = set()
    environment: set[bytes] = set()
    at = 0
    while at < len(text):
        if text[at] != ord(","):
            option, at = _read_option(text, at)
            if option.name in _ONCE & seen or text[at : at + 1] not in {b",", b""}:
                raise BadLineError
            if option.name == b"environment":
                _note_environment(environment, option.value or b"")
            seen.add(option.name)
            options.append(option)
        at += 1
    return options


def _read_option(text: bytes, start: int) -> tuple[_Option, int]:
    match = _OPTION_NAME.match(text, start)
    name, at = (match[0].lower(), match.end()) if match else (b"", start)
    if name in _FLAGS:
        return _Option(name), at
    if name not in _VALUED or text[at : at + 2] != b'="':
        raise BadLineError
    end = text.find(b'"', at + 2)
    while end > 0 and text[end - 1] == ord("\\"):  # \" is the only escape, and \\" is a backslash and an escape
        end = text.find(b'"', end + 1)
    if end < 0:
        raise BadLineError
    return _Option(name, text[at + 2 : end].replace(b'\\"', b'"')), end + 1


def _note_environment(names: set[bytes], value: bytes) -> None:
    """Refuse an ``environment=`` that OpenSSH refuses, though it is omitted from the printed line."""
    name, equals, _ = value.partition(b"=")
    if len(names) > _ENVIRONMENT_MAX or not equals or not _ENVIRONMENT_NAME.fullmatch(name):
        raise BadLineError
    names.add(name)
