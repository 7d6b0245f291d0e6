"""Parses public keys and user certificates in SSH's wire format, with every length checked.

No signature is verified here: sshd verifies the key that it passes to us, and again the lines that we print. This
module determines whether two keys are the same, which authority signed a certificate, and its forced command. Anything
unexpected is a `ProtocolError`, and the key is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from helpers.protocol.errors import ProtocolError
from helpers.ssh.wire import WireReader, string

_ED25519_BYTES = 32  # RFC 8709, section 4
_UNCOMPRESSED_POINT = 4  # SEC 1, section 2.3.3; OpenSSH refuses the compressed forms (sshbuf-getput-crypto.c)
_USER_CERTIFICATE = 1  # PROTOCOL.certkeys, SSH_CERT_TYPE_USER

_FIELDS = {
    "ssh-ed25519": ("ed25519",),
    "ssh-rsa": ("mpint", "mpint"),
    "ecdsa-sha2-nistp256": ("nistp256", "point"),
    "ecdsa-sha2-nistp384": ("nistp384", "point"),
    "ecdsa-sha2-nistp521": ("nistp521", "point"),
    "sk-ssh-ed25519@openssh.com": ("ed25519", "text"),
    "sk-ecdsa-sha2-nistp256@openssh.com": ("nistp256", "point", "text"),
}
"""The fields after the type's name in a public key. Sources: RFC 4253 6.6, RFC 5656 3.1, RFC 8709 4, PROTOCOL.u2f."""

PLAIN_TYPES = frozenset(_FIELDS)
"""Supported types of plain keys; DSA is not supported, as in OpenSSH 10."""

CERTIFICATE_TYPES = {
    f"{name.removesuffix('@openssh.com')}-cert-v01@openssh.com": fields for name, fields in _FIELDS.items()
}
"""Supported types of certificates, each with the fields of the certified key."""

KEY_NAMES = {name.encode(): name for name in _FIELDS} | {
    b"rsa-sha2-256": "ssh-rsa",
    b"rsa-sha2-512": "ssh-rsa",
    b"webauthn-sk-ecdsa-sha2-nistp256@openssh.com": "sk-ecdsa-sha2-nistp256@openssh.com",
}
"""Names that OpenSSH accepts as the type of a key: the same table contains the names of signature algorithms
(sshkey.c, keyimpls). If a name were missing here, a line would be skipped that in sshd takes precedence over those
below it."""

_SHORT_NAMES = {b"rsa": "ssh-rsa", b"ed25519": "ssh-ed25519", b"ed25519-sk": "sk-ssh-ed25519@openssh.com"}
"""Short names that OpenSSH before 9.9 accepts as a type within a blob, in upper or lower case (sshkey.c,
sshkey_type_from_name); those of ECDSA fail later there."""


@dataclass(frozen=True)
class Certificate:
    """The part of a user certificate that the gateway needs; sshd checks the rest.

    Attributes:
        signature_key: The public key of the authority that signed it, in the form of `canonical_key`.
        forced_command: Its ``force-command`` critical option; None if there is none.
    """

    signature_key: bytes
    forced_command: bytes | None


def canonical_key(blob: bytes, *, short_names: bool = False) -> tuple[str, bytes]:
    """Convert a plain public key to the form in which OpenSSH writes it.

    OpenSSH reads more forms than it writes: numbers with leading zeros, other names for a type, a NUL at the end of a
    text. In OpenSSH two blobs are the same key (sshkey_equal) if their canonical forms are equal.

    Args:
        blob: The key in wire format.
        short_names: Whether the type may have a short name, which only OpenSSH before 9.9 accepts.

    Returns:
        Its type, one of `PLAIN_TYPES`, and its canonical blob.

    Raises:
        ProtocolError: The blob is not a complete plain key of a supported type.
    """
    reader = WireReader(blob)
    name = reader.text()
    key_type = KEY_NAMES.get(name) or (_SHORT_NAMES.get(name.lower()) if short_names else None)
    if key_type is None:
        msg = "a key is of a type that is not served"
        raise ProtocolError(msg)
    fields = [_take_field(reader, kind) for kind in _FIELDS[key_type]]
    reader.end()
    return key_type, b"".join(map(string, (key_type.encode(), *fields)))


def parse_certificate(key_type: str, blob: bytes) -> Certificate:
    """Parse a user certificate.

    Args:
        key_type: One of `CERTIFICATE_TYPES`; the blob must have the same type.
        blob: The certificate in wire format.

    Returns:
        Its authority and its forced command.

    Raises:
        ProtocolError: The blob is not a complete user certificate of that type, has two forced commands, or has
            principals that versions of OpenSSH interpret differently.

    Source: OpenSSH 9.2, PROTOCOL.certkeys; sshkey.c cert_parse; auth-options.c cert_option_list.
    """
    reader = WireReader(blob)
    if reader.string() != key_type.encode():
        msg = "a certificate is of another type than its name"
        raise ProtocolError(msg)
    reader.string()  # nonce
    for kind in CERTIFICATE_TYPES[key_type]:
        _take_field(reader, kind)
    reader.take(8)  # serial
    if int.from_bytes(reader.take(4), "big") != _USER_CERTIFICATE:
        msg = "this is not a user's certificate"
        raise ProtocolError(msg)
    reader.text()  # key id
    _check_principals(reader.string())
    reader.take(8 + 8)  # valid after, valid before
    critical = reader.string()
    reader.string()  # extensions, which contain no forced command
    reader.string()  # reserved
    _, signature_key = canonical_key(reader.string())
    reader.string()  # signature
    reader.end()
    return Certificate(signature_key, _forced_command(critical))


def _check_principals(principals: bytes) -> None:
    """Refuse principals that OpenSSH before 10.3 interprets more broadly than newer versions.

    In those versions a certificate without principals is valid for any user (sshkey_cert_check_authority), and
    ``principals=`` matches each part of a principal with commas (auth2-pubkeyfile.c, match_principals_option).
    """
    reader = WireReader(principals)
    names = []
    while not reader.at_end:
        names.append(reader.text())
    if not names:
        msg = "the certificate has no principals, which OpenSSH refuses from 10.3 on; name the user with ssh-keygen -n"
        raise ProtocolError(msg)
    if any(not name or b"," in name for name in names):
        msg = "the certificate has a principal that is empty or has a comma in it"
        raise ProtocolError(msg)


def _forced_command(critical: bytes) -> bytes | None:
    reader = WireReader(critical)
    forced: bytes | None = None
    while not reader.at_end:
        name, data = reader.text(), WireReader(reader.string())
        if name != b"force-command":
            continue  # sshd enforces the options that it supports and refuses a certificate with any other
        if forced is not None:
            msg = "a certificate has two forced commands"
            raise ProtocolError(msg)
        forced = data.text()
        data.end()
    return forced


def _take_field(reader: WireReader, kind: str) -> bytes:
    if kind == "mpint":
        digits = reader.mpint()
        return b"\0" + digits if digits[:1] > b"\x7f" else digits
    if kind == "text":
        return reader.text()
    field = reader.text() if kind.startswith("nistp") else reader.string()
    expected = {
        "ed25519": len(field) == _ED25519_BYTES,
        "point": field[:1] == bytes([_UNCOMPRESSED_POINT]),
    }.get(kind, field == kind.encode())
    if not expected:
        msg = f"a key has no {kind} where it should"
        raise ProtocolError(msg)
    return field
