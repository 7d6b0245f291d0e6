"""Parsing and encoding of SSH's data types (RFC 4251, section 5)."""

from __future__ import annotations

from helpers.protocol.errors import ProtocolError

MPINT_MAX_BYTES = 2048
"""Longest RSA number, in bytes. Source: OpenSSH 9.2 sshbuf.h, SSHBUF_MAX_BIGNUM (16384 bits)."""


class WireReader:
    """Parses SSH's data types (RFC 4251, section 5), from the first byte on.

    Args:
        data: The bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, length: int) -> bytes:
        """Take so many bytes; raises `ProtocolError` if there are fewer."""
        taken = self._data[self._at : self._at + length]
        if len(taken) != length:
            msg = "a message, key or certificate ends too early"
            raise ProtocolError(msg)
        self._at += length
        return taken

    def byte(self) -> int:
        """Take a byte."""
        return self.take(1)[0]

    def uint32(self) -> int:
        """Take a uint32."""
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        """Take a string: four bytes of length, then the content."""
        return self.take(self.uint32())

    def text(self) -> bytes:
        """Take a string as OpenSSH's sshbuf_get_cstring does: a NUL may only be its last byte, and is removed."""
        text = self.string().removesuffix(b"\0")
        if b"\0" in text:
            msg = "a text in a key or certificate has a NUL in it"
            raise ProtocolError(msg)
        return text

    def mpint(self) -> bytes:
        """Take a number that is not negative, without its leading zeros (OpenSSH: sshbuf_get_bignum2)."""
        digits = self.string()
        stripped = digits.lstrip(b"\0")
        if digits[:1] > b"\x7f" or len(digits) > MPINT_MAX_BYTES + 1 or len(stripped) > MPINT_MAX_BYTES:
            msg = "a number in a key is negative or too long"
            raise ProtocolError(msg)
        return stripped

    @property
    def at_end(self) -> bool:
        """Whether every byte is taken."""
        return self._at == len(self._data)

    def end(self) -> None:
        """Check that every byte is taken; raises `ProtocolError` if one is left."""
        if not self.at_end:
            msg = "a message, key or certificate goes on after its end"
            raise ProtocolError(msg)


def string(content: bytes) -> bytes:
    """Encode a string: four bytes of length, then the content."""
    return len(content).to_bytes(4, "big") + content
