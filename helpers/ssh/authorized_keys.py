"""Reads the lines of an authorized_keys file, and writes those that sshd gets to see for one offered key.

sshd enforces the options of what is printed here, as it does for a file, with one exception: ForceCommand in
sshd_config overrides a line's ``command=``. So that command is carried to the session in an environment variable
that nobody else can set, and every ``environment=`` of the file itself is left out.

Three rules keep this from letting in anybody whom OpenSSH would not:

- A line is read as OpenSSH reads it and printed from what was read, so sshd has nothing left to read differently.
- The first line that sshd accepts rules, with its options. A line that OpenSSH refuses is skipped, as it does; a line
  that only we refuse ends the file, or a line below it, with fewer restrictions, would rule in its place.
- A line that one version of OpenSSH accepts and another refuses, or reads differently, ends the file too. The gateway
  cannot tell which version the remote has: if the line were printed, it would let in whom one version refuses; if it
  were skipped, a line below it would rule where in the other version it does not. Such are a key whose blob has a short
  name for its type, which OpenSSH takes up to 9.8, and the options in `helpers.ssh.openssh_versions`.

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
"""Environment variable that carries a ``command=`` to the session; PermitUserEnvironment names it alone."""

MAX_OFFERED_CHARS = 128 * 1024
"""Longest key that can be offered, in base64 characters: Linux's longest argument (MAX_ARG_STRLEN), as which sshd
hands it over."""

MAX_COMMAND_BYTES = 24 * 1024
"""Longest command that is carried, in bytes: its base64 fits into one environment variable (128 KiB on Linux) and into
a request to the broker."""

EMPTY_COMMAND = "="
"""What carries ``command=""``, which runs nothing: a variable that is empty is too easily taken for one that is unset,
and then a shell would be started."""

_ENVIRONMENT_MAX = 1024  # auth-options.h, SSH_AUTHOPT_ENV_MAX
_NEGATABLE = b"port-forwarding agent-forwarding x11-forwarding touch-required verify-required pty user-rc".split()
_FLAGS = frozenset({b"restrict", b"cert-authority", *_NEGATABLE, *(b"no-" + name for name in _NEGATABLE)})
_ONCE = frozenset({b"command", b"principals", b"from"})
_VALUED = frozenset({*_ONCE, b"expiry-time", b"environment", b"permitopen", b"permitlisten", b"tunnel"})

_BLANKS = b" \t"
_OPTION_NAME = re.compile(rb"[A-Za-z0-9-]*+")
_SKIPPED_IN_BASE64 = b"\n\v\f\r"  # b64_pton skips isspace(3); blanks have ended the word before
_ENVIRONMENT_NAME = re.compile(rb"[A-Za-z0-9_]+")
_KEY = re.compile(rb"[ \t]*+([^ \t]++)[ \t]++([^ \t]++)")
# No expression here can backtrack: *+ and ++ keep what they took.
_OPTIONS = re.compile(rb'(?:[^ \t"\\]++|\\"?+|"(?:[^"\\]++|\\"?+)*+")*+')
_JOINED = re.compile(rb"\\n[^\n]*(?:ssh-|ecdsa-|AAAA)")
_UNPRINTABLE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # a tab between quotes is text to sshd and to us


@dataclass(frozen=True)
class OfferedKey:
    """A key that a client offers, as sshd names it to AuthorizedKeysCommand.

    Attributes:
        key_type: sshd's ``%t``.
        blob: sshd's ``%k`` in wire format.
        certificate: What it says, when it is a certificate; None for a plain key.
    """

    key_type: str
    blob: bytes
    certificate: Certificate | None = None

    @property
    def wanted(self) -> bytes:
        """The key that a line must have, canonical: this one, or that of the authority which signed it."""
        return self.blob if self.certificate is None else self.certificate.signature_key

    @property
    def wanted_line(self) -> bytes:
        """That key as it stands in a line, without options."""
        key_type, _ = canonical_key(self.wanted)
        return key_type.encode() + b" " + base64.b64encode(self.wanted)


@dataclass(frozen=True)
class _Option:
    name: bytes
    value: bytes | None = None

    def __bytes__(self) -> bytes:
        return self.name if self.value is None else self.name + b'="' + self.value.replace(b'"', b'\\"') + b'"'


class BadLineError(Exception):
    """OpenSSH itself refuses this line, for this key, and goes on with the next."""


class LastLineError(Exception):
    """OpenSSH, or a version of it, may accept this line, and we do not: it ends the file for its key."""


@dataclass(frozen=True, slots=True)
class KeyLine:
    """A line with a key, as it may be printed.

    Attributes:
        options: The options to print, joined, without ``environment=``.
        command: What ``command=`` says; None where there is none.
        is_printable: Whether we are willing to print all options.
    """

    options: bytes
    command: bytes | None
    is_printable: bool

    def printed_for(self, offered: OfferedKey) -> bytes:
        """Write the line as sshd is to read it.

        Args:
            offered: The key that the line is for, or the certificate that it has the authority for.

        Raises:
            BadLineError: The certificate forces another command than the line.
            LastLineError: We are not willing to print the line, or to carry its command.
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
    """Read the key that sshd asks about.

    Args:
        key_type: sshd's ``%t``, such as ``ssh-ed25519`` or ``ssh-ed25519-cert-v01@openssh.com``.
        base64_blob: sshd's ``%k``, at most `MAX_OFFERED_CHARS`.

    Returns:
        The key; for a certificate, with who signed it and what it forces.

    Raises:
        ProtocolError: The type is not served, or the blob is not one whole key or user certificate of that type.
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
    """Read a line of an authorized_keys file.

    Args:
        line: The line without its newline.

    Returns:
        Its key, canonical; whether it is an authority's, for certificates alone; and what may be printed of it, or None
        where versions of OpenSSH differ on the line, which then ends the file for this key.

    Raises:
        BadLineError: It has no key, or every version refuses it.
    """
    line = line.partition(b"\0")[0].lstrip(_BLANKS)  # to OpenSSH, a line is a C string
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
    """Find the lines of an authorized_keys file that let nobody in, whichever key is offered.

    Args:
        content: The file, any bytes.

    Yields:
        The line's number, from 1 on, and what is wrong with it.
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
    """Let a line end by itself; one that ends sooner already goes on doing so (auth-options.c, ``expiry-time``).

    Args:
        line: A line as `KeyLine.printed_for` writes it.
        expires: The last second in which it holds; its zone is UTC.
    """
    # An option's name is none of a key's type.
    has_options = line.partition(b" ")[0] not in KEY_NAMES
    return b'expiry-time="%s"%s%s' % (expires.strftime("%Y%m%d%H%M%SZ").encode(), b"," if has_options else b" ", line)


def encode_command(command: bytes) -> str:
    """Write a command as the value of `CARRIER`: base64, or `EMPTY_COMMAND`; never an empty string."""
    return base64.b64encode(command).decode("ascii") or EMPTY_COMMAND


def decode_command(value: str) -> str:
    """Read the value of `CARRIER`.

    Args:
        value: What `encode_command` wrote.

    Returns:
        The command; bytes that are no UTF-8 as surrogates (``surrogateescape``), as in ``os.environ``.

    Raises:
        ProtocolError: It is no such value, above all when it is empty. Then nothing may be run, a shell least of all.
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
    """Find a line's key, and where the options before it end."""
    key, end = _read_key(line, 0), 0
    if key is None and (words := _OPTIONS.match(line)):
        end = words.end()
        key = _read_key(line, end)
    return key, end


def _read_key(line: bytes, start: int) -> _Key | None:
    """Read ``keytype base64`` as sshkey_read does; return the key in its canonical form, or None."""
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
    """Decode base64 in its one canonical form; None for anything else, as b64_pton refuses it."""
    try:
        decoded = base64.b64decode(text)
    except binascii.Error:
        return None
    return decoded if base64.b64encode(decoded) == text else None


def _read_options(text: bytes) -> list[_Option]:
    """Read a line's options as sshauthopt_parse does: names in lower case, empty options (``,,``) left out."""
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
    while end > 0 and text[end - 1] == ord("\\"):  # \" is the one escape, and \\" is a backslash and an escape
        end = text.find(b'"', end + 1)
    if end < 0:
        raise BadLineError
    return _Option(name, text[at + 2 : end].replace(b'\\"', b'"')), end + 1


def _note_environment(names: set[bytes], value: bytes) -> None:
    """Refuse what OpenSSH refuses of an ``environment=`` that is then left out anyway."""
    name, equals, _ = value.partition(b"=")
    if len(names) > _ENVIRONMENT_MAX or not equals or not _ENVIRONMENT_NAME.fullmatch(name):
        raise BadLineError
    names.add(name)
