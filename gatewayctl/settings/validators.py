"""Validators of settings, as pure functions of text.

Each takes text and returns the value, or raises ``ValueError`` with a hint: half a sentence about the problem, without
the value itself, or nothing. They use the standard library only.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# RFC 1123 labels, and the underscore that container networks use in names.
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)(?:[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)*"
    r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.?"
)
_COMMAND = re.compile(r"(?:/[A-Za-z0-9_.+-]+)+|[A-Za-z0-9_.+][A-Za-z0-9_.+-]*")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9._/+=:,@-]+", re.ASCII)
_RUNTIME_DIRECTORY = re.compile(r"(?:/[A-Za-z0-9_.+-]+)+")
_PORTS = re.compile(r"([0-9]{1,5})(?::([0-9]{1,5}))?", re.ASCII)
# The directories in which gatewayctl/sshd/namespace.py replaces files.
_OF_SSHD = ("/dev/", "/etc/", "/var/log/", "/run/nscd/", "/run/sshd/", "/run/systemd/userdb/", "/run/userdb/")
_RANGE = re.compile(r"([0-9]{1,10}):([0-9]{1,10})", re.ASCII)

# sun_path has 108 bytes (unix(7)); the rest is for the sockets' own names below the directory.
MAX_RUNTIME_DIRECTORY = 64
# A 16384-bit RSA key in PEM has 12.7 kB; all keys of ssh-keygen are far smaller than this.
MAX_KEY_BYTES = 65536

FIRST_UID = 1000  # login.defs UID_MIN: lower uids are the system's.
LAST_UID = 2**31 - 1  # higher uids are negative in programs that store them in an int.
MIN_UIDS = 1024
# (uid_t)-1 in 16 bits and the kernel's overflow uid: systemd, UIDS-GIDS.md.
RESERVED_UIDS = (65534, 65535)
# Above the ranges that systemd gives to containers and dynamic users (UIDS-GIDS.md), below 2**31.
_DERIVED_START = 0x70000000
_DERIVED_SIZE = 65536
_DERIVED_BLOCKS = 4096


def host(text: str) -> str:
    """Accept a host name, an IPv4 or an IPv6 address; nothing that a program could parse as an option."""
    if text.startswith("["):
        raise ValueError("an IPv6 address goes without brackets")
    if text.count(":") == 1:
        raise ValueError("the port is a setting of its own")
    if ":" in text:
        return str(_address(text))
    if text.rstrip(".").rpartition(".")[2].isdigit():  # RFC 3696, 2: no top-level domain is all digits
        return str(_address(text))
    if not _HOST_NAME.fullmatch(text):
        raise ValueError
    return text


def listen_host(text: str) -> str:
    """Accept the values of `host`, and ``*`` for every address."""
    return text if text == "*" else host(text)


def remote_host(text: str) -> str:
    """Accept the values of `host`, except addresses that are not those of a single host."""
    name = host(text)
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name
    if address.is_unspecified or address.is_multicast:
        raise ValueError("that is no address of one host")
    return name


def port(text: str) -> str:
    """Pass a port on to the number check, and explain the value that Kubernetes may set."""
    if text.startswith("tcp://"):
        raise ValueError("Kubernetes sets it for a Service of that name unless enableServiceLinks is false")
    return text


def port_range(text: str) -> str:
    """Accept ``P`` or ``P:P2``, both 1-65535, ascending."""
    match = _PORTS.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= int(match[2] or match[1]) <= 65535:  # noqa: PLR2004 - UDP ports
        raise ValueError
    return text


def uid_range(text: str) -> tuple[int, int]:
    """Parse ``START:END``, both inclusive."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError
    start, end = int(match[1]), int(match[2])
    if start < FIRST_UID:
        raise ValueError(f"uids below {FIRST_UID} are the system's")
    if end > LAST_UID:
        raise ValueError(f"the last uid there is is {LAST_UID}")
    if end - start + 1 < MIN_UIDS:
        raise ValueError(f"it needs at least {MIN_UIDS} uids")
    if any(start <= uid <= end for uid in RESERVED_UIDS):
        raise ValueError("65534 and 65535 are reserved")
    return start, end


def derived_uid_range(runtime_directory: Path) -> tuple[int, int]:
    """Choose the block of 65536 uids for a runtime directory, the same on every start.

    Two gateways on one machine have different runtime directories, and so different blocks, except with a probability
    of 1 in 4096.
    """
    block = zlib.crc32(bytes(runtime_directory)) % _DERIVED_BLOCKS
    start = _DERIVED_START + _DERIVED_SIZE * block
    return start, start + _DERIVED_SIZE - 1


def mapped_uid_range(wanted: tuple[int, int], uid_map: str) -> tuple[int, int]:
    """Choose uids that exist: a user namespace, as in rootless containers, may have few.

    Args:
        wanted: The preferred first and last uid, both inclusive.
        uid_map: The namespace's map (user_namespaces(7)): lines of a first uid inside, one outside, and how many.

    Returns:
        ``wanted`` if all of it is mapped, else the longest mapped range that does not contain the system's uids.
    """
    free: list[tuple[int, int]] = []
    for line in uid_map.splitlines():
        first, _, count = map(int, line.split())
        last = first + count - 1
        if first <= wanted[0] and wanted[1] <= last:
            return wanted
        lowest, highest = max(first, FIRST_UID), min(last, LAST_UID)
        free += [(lowest, min(highest, min(RESERVED_UIDS) - 1)), (max(lowest, max(RESERVED_UIDS) + 1), highest)]
    start, end = max(free, key=lambda uids: uids[1] - uids[0], default=wanted)
    return (start, min(end, start + _DERIVED_SIZE - 1)) if end - start + 1 >= MIN_UIDS else wanted


def absolute_path(text: str) -> str:
    """Accept an absolute path that can be written to a configuration file: no control characters."""
    if not text.startswith("/"):
        raise ValueError("it does not begin with /")
    if not text.isprintable():
        raise ValueError("it has control characters")
    if text != text.rstrip():
        raise ValueError("it ends with a blank")
    return text


def runtime_directory(text: str) -> str:
    """Accept an absolute directory, short enough for socket names: plain characters, no ``..``, not ``/``."""
    plain = text.rstrip("/")
    if not _RUNTIME_DIRECTORY.fullmatch(plain) or {".", ".."} & set(plain.split("/")):
        raise ValueError
    # gatewayctl/sshd/namespace.py; with a slash at the end, so that /devices does not match.
    if plain == "/run" or f"{plain}/".startswith(_OF_SSHD):
        raise ValueError("there the gateway's sshd has files of its own; /run/gateway is one where it has not")
    if len(plain) > MAX_RUNTIME_DIRECTORY:
        raise ValueError("it is too long for the sockets in it")
    return plain


def networks(text: str) -> str:
    """Accept addresses and networks, separated by commas, and return them in the format of sshd's lists."""
    found = [ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip()]
    return ",".join(map(str, found))


def command(text: str) -> str:
    """Accept one command word, or the absolute path of a command."""
    if not _COMMAND.fullmatch(text):
        raise ValueError
    return text


def authorized_keys_files(text: str) -> list[str]:
    """Parse paths in the format of AuthorizedKeysFile (sshd_config(5)): separated by blanks, ``none`` for no file."""
    paths = text.split()
    if not paths:
        raise ValueError("it is empty; none stands for no file")
    if paths == ["none"]:
        return []
    for path in paths:
        _check_tokens(path)
    return paths


def authorized_keys_command(text: str) -> str:
    """Accept a command in the format of AuthorizedKeysCommand (sshd_config(5)): an absolute path, then plain words."""
    words = text.split()
    if words and not words[0].startswith("/"):
        raise ValueError("its path is not absolute")
    for word in words:
        _check_tokens(word)
    return " ".join(words)


def _check_tokens(word: str) -> None:
    """Accept a word that no shell interprets, with the tokens %u, %h and %%."""
    if not _PLAIN_WORD.fullmatch(word.replace("%%", "").replace("%u", "").replace("%h", "") or "x"):
        raise ValueError("a word has another token than %u, %h and %%, or other characters than A-Za-z0-9._/+=:,@-")


def key_content(text: str) -> bytes:
    """Decode the base64 of a private key file; line breaks in it do not matter.

    The hints never quote it.
    """
    if text.lstrip().startswith("-----BEGIN"):
        raise ValueError("it is the key itself; give the output of base64 -w0 FILE")
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("it is not base64") from None
    if not content.startswith(b"-----BEGIN ") or len(content) > MAX_KEY_BYTES:
        raise ValueError("what it decodes to is no private key file")
    return content


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if "%" in text:
        raise ValueError("an address with a zone is not supported")
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ValueError from None
