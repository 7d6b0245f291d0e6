"""An ssh-agent that signs only the caller's own login on the remote, with the gateway's key.

Source: draft-ietf-sshm-ssh-agent; RFC 4252 section 7 (the signed data of a userauth request); OpenSSH 9.2,
PROTOCOL section 3.1 (publickey-hostbound-v00@openssh.com).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass

from helpers.protocol.errors import GatewayError, ProtocolError
from helpers.ssh.wire import WireReader, string

MAX_MESSAGE_BYTES = 64 * 1024
"""Longest message, in bytes, that is read: a request to sign a login is smaller than 5 KiB with the largest key."""

FAILURE = bytes([5])
_REQUEST_IDENTITIES = 11
_IDENTITIES_ANSWER = 12
_SIGN_REQUEST = 13
_SIGN_RESPONSE = 14
_EXTENSION = 27
_USERAUTH_REQUEST = 50  # RFC 4252, SSH_MSG_USERAUTH_REQUEST
_HOSTBOUND = b"publickey-hostbound-v00@openssh.com"
_SESSION_BIND = b"session-bind@openssh.com"


@dataclass(frozen=True)
class Identity:
    """The agent's key.

    Attributes:
        blobs: Its public keys: the plain one, and the certificate for it if there is one.
        sign: Signs data with an algorithm (``ssh-ed25519``, ``rsa-sha2-512`` ...) and returns the signature in wire
            format; None for an algorithm that does not fit the key.
    """

    blobs: tuple[bytes, ...]
    sign: Callable[[bytes, str], bytes | None]


class RefusedError(GatewayError):
    """The agent refuses the request; the sentence is for the log."""

    code = "agent_refused"
    status = 77


def answer(message: bytes, user: str, identity: Identity, accepts_host_key: Callable[[str, bytes], None]) -> bytes:
    """Answer one message.

    Args:
        message: The message without its length.
        user: The name that owns the caller's uid.
        identity: The gateway's key.
        accepts_host_key: Raises `GatewayError` for a host key (type, blob) that is not the remote's.

    Returns:
        The answer without its length.

    Raises:
        RefusedError: The request is not permitted; the answer is `FAILURE`.
        ProtocolError: The message is malformed; the answer is `FAILURE` too.
    """
    reader = WireReader(message)
    kind = reader.byte()
    if kind == _REQUEST_IDENTITIES:
        reader.end()
        keys = b"".join(string(blob) + string(b"ssh-mosh-gateway") for blob in identity.blobs)
        return bytes([_IDENTITIES_ANSWER]) + struct.pack(">I", len(identity.blobs)) + keys
    if kind == _EXTENSION and reader.string() == _SESSION_BIND:
        # OpenSSH clients first send session-bind for the connection, and continue if it fails.
        return FAILURE
    if kind != _SIGN_REQUEST:
        msg = f"message {kind} is not one that this agent serves"
        raise RefusedError(msg)
    blob, data, flags = reader.string(), reader.string(), reader.uint32()
    reader.end()
    if blob not in identity.blobs:
        msg = "asked to sign with a key that is not the gateway's"
        raise RefusedError(msg)
    algorithm = check_login(data, user, identity.blobs, accepts_host_key)
    if algorithm.startswith("rsa-sha2-") and flags != {"rsa-sha2-256": 2, "rsa-sha2-512": 4}.get(algorithm):
        msg = "the request's algorithm and its flags differ"
        raise RefusedError(msg)
    signature = identity.sign(data, algorithm)
    if signature is None:
        msg = f"the gateway's key does not sign as {algorithm}"
        raise RefusedError(msg)
    return bytes([_SIGN_RESPONSE]) + string(signature)


def is_signature(answer: bytes) -> bool:
    """Whether an answer is a signature."""
    return answer[:1] == bytes([_SIGN_RESPONSE])


def check_login(
    data: bytes, user: str, blobs: Collection[bytes], accepts_host_key: Callable[[str, bytes], None]
) -> str:
    """Check that the data to sign is a login of one user, with one key, on the remote.

    Args:
        data: The data to sign.
        user: The only permitted user name.
        blobs: The only permitted public keys. The request itself may name either of them: to log in with a
            certificate, ssh requests a signature by the plain key (OpenSSH 9.2, sign_and_send_pubkey).
        accepts_host_key: See `answer`.

    Returns:
        The signature's algorithm, without a certificate's suffix.

    Raises:
        RefusedError: The data is a login of another user, or on another host, or not a login.
        ProtocolError: The data is malformed.
    """
    reader = WireReader(data)
    reader.string()  # the session identifier: a hash that binds the signature to one connection
    if reader.byte() != _USERAUTH_REQUEST:
        msg = "asked to sign what is no login"
        raise RefusedError(msg)
    name, service, method, signed = reader.string(), reader.string(), reader.string(), reader.byte()
    algorithm, key = reader.string(), reader.string()
    if name != user.encode("ascii"):
        msg = "asked to sign a login as another user"
        raise RefusedError(msg)
    if service != b"ssh-connection" or method not in (b"publickey", _HOSTBOUND) or signed != 1 or key not in blobs:
        msg = "asked to sign a login of another kind"
        raise RefusedError(msg)
    if method == _HOSTBOUND:
        host_key = reader.string()
        try:
            accepts_host_key(WireReader(host_key).string().decode("ascii", "replace"), host_key)
        except ProtocolError:
            raise
        except GatewayError as exc:
            raise RefusedError(exc.message) from exc
    reader.end()
    return algorithm.decode("ascii", "replace").removesuffix("-cert-v01@openssh.com")
