"""Decides which lines of an authorized_keys file sshd gets to see for one offered key.

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
  name for its type, which OpenSSH takes up to 9.8, and the options in `helpers.broker.versions`.

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

from helpers.broker.certificate import (
    CERTIFICATE_TYPES,
    KEY_NAMES,
    PLAIN_TYPES,
    Certificate,
    canonical_key,
    parse_certificate,
)
from helpers.broker.versions import is_read_alike
from helpers.errors import ProtocolError

CARRIER = "GATEWAY_COMMAND"
"""Environment variable that carries a ``command=`` to the session; PermitUserEnvironment names it alone."""

MAX_CONTENT_BYTES = 1024 * 1024
"""Largest authorized_keys file, in bytes; a larger one lets nobody in. About 10,000 Ed25519 keys; the longest time
that a hostile file of this size was measured to take is 0.4 s."""

MAX_OFFERED_CHARS = 128 * 1024
"""Longest key that can be offered, in base64 characters: Linux's longest argument (MAX_ARG_STRLEN), as which sshd
hands it over."""

MAX_COMMAND_BYTES = 24 * 1024
"""Longest command that is carried, in bytes: its base64 fits into one environment variable (128 KiB on Linux) and into
a request to the broker."""

MAX_PERMITTED_LINES = 256
"""Most lines for one key. Several make sense, say one for each ``from=``; thousands would only be work for sshd."""

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


@dataclass(frozen=True)
class _Option:
    name: bytes
    value: bytes | None = None

    def __bytes__(self) -> bytes:
        return self.name if self.value is None else self.name + b'="' + self.value.replace(b'"', b'\\"') + b'"'


class _BadLineError(Exception):
    """OpenSSH itself refuses this line and goes on with the next."""


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


def permitted_lines(content: bytes, offered: OfferedKey) -> list[bytes]:
    """Find the lines that may let a key in, and write each as sshd is to read it.

    For a plain key these are the lines with that key; for a certificate, the ``cert-authority`` lines with the key that
    signed it. ``from=``, ``expiry-time=``, ``principals=`` and the rest are sshd's to judge: a line in the result is no
    verdict. Times without a ``Z`` are read in the gateway's time zone, addresses are those that the gateway sees.

    Args:
        content: An authorized_keys file, any bytes; more than `MAX_CONTENT_BYTES` permit nothing.
        offered: The key, from `parse_offered_key`.

    Returns:
        Lines without a newline, control characters (but for tabs between quotes) or comment, in the file's order, at
        most `MAX_PERMITTED_LINES`. With them sshd lets in whom it lets in with the file itself, and in the same way;
        the few cases in which it lets in fewer are listed in tests/system/test_keyline_differential.py.
    """
    if len(content) > MAX_CONTENT_BYTES:
        return []
    wanted = offered.blob if offered.certificate is None else offered.certificate.signature_key
    wanted_type, _ = canonical_key(wanted)
    names = [re.escape(name) for name, key_type in KEY_NAMES.items() if key_type == wanted_type]
    key = wanted_type.encode() + b" " + base64.b64encode(wanted)
    lines: list[bytes] = []
    for line in _lines_with(re.compile(b"|".join(names)), content):
        if len(line) < len(wanted):
            continue  # in base64 a key is longer than that, under any of its names; hostile files take less time so
        try:
            options = _options_for(wanted, offered, line)
        except _BadLineError:
            continue
        if options is None or not _is_ours_to_print(options) or len(lines) == MAX_PERMITTED_LINES:
            break
        lines.append(b" ".join(filter(None, (b",".join(map(bytes, options)), key))))
    return lines


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
    key, end = _read_key(line, 0), 0
    if key is None and (words := _OPTIONS.match(line)):
        end = words.end()
        key = _read_key(line, end)
    if key is None:
        quoted = ", and it begins with a quotation mark" if line[:1] in {b'"', b"'"} else ""
        return f"it has no key of a type that is served{quoted}"
    try:
        options = _read_options(line[:end])
    except _BadLineError:
        return "its options are not ones that OpenSSH takes"
    if key.has_short_name or not all(is_read_alike(option.name, option.value or b"") for option in options):
        return "versions of OpenSSH read it differently"
    return None


def with_expiry(line: bytes, expires: datetime) -> bytes:
    """Let a line end by itself; one that ends sooner already goes on doing so (auth-options.c, ``expiry-time``).

    Args:
        line: One of `permitted_lines`.
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


def _lines_with(names: re.Pattern[bytes], content: bytes) -> Iterator[bytes]:
    """Yield the lines in which one of the names occurs, without their newline, the only end of a line there is."""
    end = -1
    while hit := names.search(content, end + 1):
        start = content.rfind(b"\n", end + 1, hit.start()) + 1 or end + 1
        end = content.find(b"\n", hit.end())
        if end < 0:
            yield content[start:]
            return
        yield content[start:end]


def _options_for(wanted: bytes, offered: OfferedKey, line: bytes) -> list[_Option] | None:
    """Read a line for the wanted key.

    Returns:
        The options to print; None where versions of OpenSSH differ on the line.

    Raises:
        _BadLineError: Every version refuses the line.
    """
    line = line.partition(b"\0")[0].lstrip(_BLANKS)  # to OpenSSH, a line is a C string
    if line.startswith(b"#"):
        raise _BadLineError
    key, end = _read_key(line, 0), 0
    if key is None and (words := _OPTIONS.match(line)):
        end = words.end()
        key = _read_key(line, end)
    if key is None or key.blob != wanted:
        raise _BadLineError
    options = _read_options(line[:end])
    is_authority = any(option.name == b"cert-authority" for option in options)
    if is_authority != (offered.certificate is not None):
        raise _BadLineError
    if key.has_short_name or not all(is_read_alike(option.name, option.value or b"") for option in options):
        return None
    command = next((option.value for option in options if option.name == b"command"), None)
    if offered.certificate is not None and offered.certificate.forced_command is not None:
        if command not in {None, offered.certificate.forced_command}:
            raise _BadLineError  # sshauthopt_merge: "forced command options do not match"
        command = offered.certificate.forced_command
    printed = [option for option in options if option.name != b"environment"]
    if command is not None:
        printed.append(_Option(b"environment", f"{CARRIER}={encode_command(command)}".encode()))
    return printed


def _is_ours_to_print(options: list[_Option]) -> bool:
    """Tell whether a line that OpenSSH may well accept is one that we are willing to print and to carry."""
    carried_max = len(CARRIER) + 1 + MAX_COMMAND_BYTES * 4 // 3
    return not any(
        _UNPRINTABLE.search(option.value) or (option.name == b"environment" and len(option.value) > carried_max)
        for option in options
        if option.value is not None
    )


@dataclass(frozen=True)
class _Key:
    blob: bytes
    has_short_name: bool


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
                raise _BadLineError
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
        raise _BadLineError
    end = text.find(b'"', at + 2)
    while end > 0 and text[end - 1] == ord("\\"):  # \" is the one escape, and \\" is a backslash and an escape
        end = text.find(b'"', end + 1)
    if end < 0:
        raise _BadLineError
    return _Option(name, text[at + 2 : end].replace(b'\\"', b'"')), end + 1


def _note_environment(names: set[bytes], value: bytes) -> None:
    """Refuse what OpenSSH refuses of an ``environment=`` that is then left out anyway."""
    name, equals, _ = value.partition(b"=")
    if len(names) > _ENVIRONMENT_MAX or not equals or not _ENVIRONMENT_NAME.fullmatch(name):
        raise _BadLineError
    names.add(name)
