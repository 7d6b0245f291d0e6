"""The broker's agent: it signs the caller's own login on the remote, and nothing else whatever is asked."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.protocol.errors import GatewayError, HostKeyError, ProtocolError
from helpers.ssh.agent import FAILURE, MAX_MESSAGE_BYTES, Identity, RefusedError, answer
from helpers.ssh.wire import string

_KEY = string(b"ssh-ed25519") + string(b"k" * 32)
_HOST_KEY = string(b"ssh-ed25519") + string(b"h" * 32)
_HOSTBOUND = b"publickey-hostbound-v00@openssh.com"


class _Signer:
    """An identity that remembers what it signed."""

    def __init__(self) -> None:
        self.signed: list[tuple[bytes, str]] = []
        self.identity = Identity((_KEY,), self._sign)

    def _sign(self, data: bytes, algorithm: str) -> bytes | None:
        if algorithm not in {"ssh-ed25519", "rsa-sha2-256", "rsa-sha2-512"}:
            return None
        self.signed.append((data, algorithm))
        return b"signature"

    def ask(self, message: bytes, user: str = "alice") -> bytes:
        return answer(message, user, self.identity, _only_the_remotes)


def _only_the_remotes(key_type: str, blob: bytes) -> None:
    if (key_type, blob) != ("ssh-ed25519", _HOST_KEY):
        msg = "not the remote's host key"
        raise HostKeyError(msg)


def _login(
    *,
    number: int = 50,
    user: bytes = b"alice",
    service: bytes = b"ssh-connection",
    method: bytes = b"publickey",
    signed: int = 1,
    algorithm: bytes = b"ssh-ed25519",
    key: bytes = _KEY,
    tail: bytes = b"",
) -> bytes:
    fields = string(user) + string(service) + string(method) + bytes([signed]) + string(algorithm) + string(key)
    return string(b"s" * 32) + bytes([number]) + fields + tail


def _sign(data: bytes, key: bytes = _KEY, flags: int = 0) -> bytes:
    return bytes([13]) + string(key) + string(data) + struct.pack(">I", flags)


def test_it_lists_the_gateways_key_alone() -> None:
    """One identity, and no private half anywhere."""
    assert _Signer().ask(bytes([11])) == bytes([12]) + struct.pack(">I", 1) + string(_KEY) + string(b"ssh-mosh-gateway")


@pytest.mark.parametrize(
    ("data", "flags", "algorithm"),
    [
        (_login(), 0, "ssh-ed25519"),
        (_login(method=_HOSTBOUND, tail=string(_HOST_KEY)), 0, "ssh-ed25519"),
        (_login(algorithm=b"ssh-ed25519-cert-v01@openssh.com"), 0, "ssh-ed25519"),
        (_login(algorithm=b"rsa-sha2-256"), 2, "rsa-sha2-256"),
        (_login(algorithm=b"rsa-sha2-512"), 4, "rsa-sha2-512"),
    ],
)
def test_it_signs_the_callers_own_login(data: bytes, flags: int, algorithm: str) -> None:
    """The caller's name, the gateway's key, the service ssh-connection, and where it is told, the remote's host key."""
    signer = _Signer()
    assert signer.ask(_sign(data, flags=flags)) == bytes([14]) + string(b"signature")
    assert signer.signed == [(data, algorithm)]


@pytest.mark.parametrize(
    "message",
    [
        _sign(_login(user=b"bob")),
        _sign(_login(user=b"alice\0")),
        _sign(_login(user=b"")),
        _sign(_login(service=b"ssh-userauth")),
        _sign(_login(method=b"hostbased")),
        _sign(_login(method=b"password")),
        _sign(_login(number=51)),
        _sign(_login(signed=0)),
        _sign(_login(signed=2)),
        _sign(_login(key=_HOST_KEY)),
        _sign(_login(), key=_HOST_KEY),
        _sign(_login(tail=b"x")),
        _sign(_login(tail=string(_HOST_KEY))),
        _sign(_login(method=_HOSTBOUND)),
        _sign(_login(method=_HOSTBOUND, tail=string(_KEY))),
        _sign(_login(method=_HOSTBOUND, tail=string(b""))),
        _sign(_login(method=_HOSTBOUND, tail=string(_HOST_KEY) + b"x")),
        _sign(_login(algorithm=b"ssh-dss")),
        _sign(_login(algorithm=b"rsa-sha2-512"), flags=2),
        _sign(_login(algorithm=b"rsa-sha2-256")),
        _sign(b""),
        _sign(b"SSHSIG" + string(b"file")),
        _sign(_login()) + b"x",
        _sign(_login())[:-1],
        bytes([11]) + b"x",
        *(bytes([number]) for number in (1, 9, 17, 18, 19, 20, 21, 22, 23, 25, 26, 99, 255)),
        bytes([27]) + string(b"restrict-destination-v00@openssh.com"),
        bytes([27]),
        b"",
    ],
)
def test_everything_else_is_refused(message: bytes) -> None:
    """Another user, host, service or key, data that is no login, adding and locking keys: nothing is signed."""
    signer = _Signer()
    with pytest.raises((RefusedError, ProtocolError)):
        signer.ask(message)
    assert signer.signed == []


def test_what_every_client_says_first_is_no_offence() -> None:
    """OpenSSH's session-bind gets the failure that clients go on after, and no line in the log."""
    assert _Signer().ask(bytes([27]) + string(b"session-bind@openssh.com") + string(b"...")) == FAILURE


@given(st.binary(max_size=400))
def test_no_message_is_signed_by_chance(message: bytes) -> None:
    """Whatever comes, either nothing is signed or an error says so; nothing else escapes."""
    signer = _Signer()
    for request in (message, bytes([13]) + message, _sign(message)):
        with contextlib.suppress(GatewayError):
            signer.ask(request)
    assert signer.signed == []
    assert len(message) < MAX_MESSAGE_BYTES


@given(st.text(min_size=1, max_size=64))
def test_a_login_is_signed_for_one_name_only(name: str) -> None:
    """Of all names in a login, only that of the uid's owner is signed."""
    signer = _Signer()
    try:
        signer.ask(_sign(_login(user=name.encode())))
    except GatewayError:
        assert name != "alice"
    else:
        assert name == "alice"


_FIELDS = {
    "number": st.integers(0, 255),
    "user": st.sampled_from([b"alice", b"bob", b"", b"alice\0", b"ALICE"]),
    "service": st.sampled_from([b"ssh-connection", b"ssh-userauth", b""]),
    "method": st.sampled_from([b"publickey", _HOSTBOUND, b"hostbased", b"password"]),
    "signed": st.integers(0, 255),
    "algorithm": st.sampled_from([b"ssh-ed25519", b"ssh-ed25519-cert-v01@openssh.com", b"rsa-sha2-512", b"ssh-dss"]),
    "key": st.sampled_from([_KEY, _HOST_KEY, b""]),
    "tail": st.sampled_from([b"", b"x", string(_HOST_KEY), string(_KEY), string(_HOST_KEY) + b"x"]),
}


@given(st.fixed_dictionaries({}, optional=_FIELDS), st.sampled_from([0, 2, 4]))
def test_only_the_permitted_form_is_signed(changes: dict[str, Any], flags: int) -> None:
    """However the fields of a login are combined, what is signed is alice's, by publickey, or bound to the remote."""
    signer, data = _Signer(), _login(**changes)
    with contextlib.suppress(GatewayError):
        signer.ask(_sign(data, flags=flags))
    algorithms = [(b"ssh-ed25519", flags), (b"ssh-ed25519-cert-v01@openssh.com", flags)]
    algorithms += [(b"rsa-sha2-512", 4)] if flags == 4 else []
    permitted = [
        _login(method=method, tail=tail, algorithm=algorithm)
        for method, tail in ((b"publickey", b""), (_HOSTBOUND, string(_HOST_KEY)))
        for algorithm, _ in algorithms
    ]
    assert [its for its, _ in signer.signed] == ([data] if data in permitted else [])
