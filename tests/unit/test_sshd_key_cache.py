"""Which keys sshd may know by itself, and until when."""

from __future__ import annotations

import base64
import hashlib
import tracemalloc

import pytest

from helpers.broker.keys.sshd_key_cache import MAX_KEYS, MAX_LINES_BYTES, MAX_USERS, PermittedLines
from helpers.ssh.authorized_keys import OfferedKey
from helpers.ssh.certificate import Certificate

_FILE, _OTHER_FILE = b"one file\n", b"another file\n"
_NOW_S = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC


def _key(name: str) -> OfferedKey:
    return OfferedKey("ssh-ed25519", b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + hashlib.sha256(name.encode()).digest())


def _line(key: OfferedKey) -> bytes:
    return b"ssh-ed25519 " + base64.b64encode(key.blob)


_ALICE = _key("alice")


def _knowing(*keys: OfferedKey, content: bytes = _FILE) -> PermittedLines:
    remembered = PermittedLines(lambda: _NOW_S)
    for key in keys or (_ALICE,):
        remembered.add("alice", content, key, [_line(key)])
    return remembered


def test_a_line_ends_with_what_is_believed() -> None:
    """A second after the file that it is in, since sshd lets it hold to the end of the second that it names."""
    assert _knowing().lines("alice", 58.9) == [b'expiry-time="20270115080059Z" ' + _line(_ALICE)]


def test_options_stay() -> None:
    """An end is added to those that a line has, among them one that is sooner."""
    remembered = PermittedLines(lambda: _NOW_S)
    line = b'expiry-time="20270101Z",from="192.0.2.0/24" ' + _line(_ALICE)
    remembered.add("alice", _FILE, _ALICE, [line])
    assert remembered.lines("alice", 58) == [b'expiry-time="20270115080059Z",' + line]


@pytest.mark.parametrize("seconds", [0.0, -1.0, -5.0])
def test_what_is_about_to_end_is_not_said(seconds: float) -> None:
    """With GATEWAY_CACHE_TTL=1 sshd asks each time."""
    assert _knowing().lines("alice", seconds) == []


def test_nobody_else_is_known() -> None:
    """Lines are a user's own."""
    remembered = _knowing()
    assert remembered.lines("bob", 60) == []
    assert not remembered.renew("bob", _FILE)


def test_keys_of_one_user_are_known_together() -> None:
    """Somebody has two devices; and who has many, the ones that were used last."""
    keys = [_key(str(number)) for number in range(MAX_KEYS + 1)]
    remembered = _knowing(*keys)
    remembered.add("alice", _FILE, keys[1], [_line(keys[1])])
    assert [line.split()[-1] for line in remembered.lines("alice", 60)] == [
        base64.b64encode(key.blob) for key in (*keys[2:], keys[1])
    ]


def test_the_same_file_again_renews() -> None:
    """What was permitted is permitted still."""
    remembered = _knowing()
    assert remembered.renew("alice", bytes(bytearray(_FILE)))
    assert len(remembered.lines("alice", 60)) == 1


@pytest.mark.parametrize("content", [_OTHER_FILE, b""])
def test_another_file_ends_all(content: bytes) -> None:
    """Whether the key is in it is for the next login to find out."""
    remembered = _knowing()
    assert remembered.renew("alice", content)
    assert remembered.lines("alice", 60) == []
    assert not remembered.renew("alice", content)


def test_a_key_of_another_file_ends_what_was_known() -> None:
    """Keys of two files are never known together."""
    remembered, bob = _knowing(), _key("bob")
    remembered.add("alice", _OTHER_FILE, bob, [_line(bob)])
    assert [line.split()[-1] for line in remembered.lines("alice", 60)] == [base64.b64encode(bob.blob)]


def test_certificates_are_not_remembered() -> None:
    """Theirs is a line for whoever signed them, which would let in others' certificates too."""
    remembered = PermittedLines(lambda: _NOW_S)
    signed = OfferedKey("ssh-ed25519-cert-v01@openssh.com", b"blob", Certificate(_ALICE.blob, None))
    remembered.add("alice", _FILE, signed, [b"cert-authority " + _line(_ALICE)])
    assert remembered.lines("alice", 60) == []


def test_a_certificate_of_another_file_ends_what_was_known() -> None:
    """Not remembered itself, it does not prolong what another file said."""
    remembered = _knowing()
    signed = OfferedKey("ssh-ed25519-cert-v01@openssh.com", b"blob", Certificate(_ALICE.blob, None))
    remembered.add("alice", _OTHER_FILE, signed, [b"cert-authority " + _line(_ALICE)])
    assert remembered.lines("alice", 60) == []


def test_what_users_write_takes_no_memory() -> None:
    """Neither the largest files nor the longest lines are kept: they are the users' own to write."""
    remembered = PermittedLines(lambda: _NOW_S)
    tracemalloc.start()
    for number in range(20):
        long = b"permitopen=%d" % number + bytes(MAX_LINES_BYTES)
        remembered.add(f"user{number}", bytes([number]) * 2**20, _ALICE, [long])
        remembered.add(f"user{number}", bytes([number]) * 2**20, _key("other"), [_line(_ALICE)])
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 20 * 2**12
    assert [line.split(b" ", 1)[1] for line in remembered.lines("user0", 60)] == [_line(_ALICE)]


def test_users_are_bounded() -> None:
    """Who was here longest ago is asked about again."""
    remembered = _knowing()
    for number in range(MAX_USERS):
        remembered.add(f"user{number}", _FILE, _ALICE, [_line(_ALICE)])
    assert remembered.lines("alice", 60) == []
    assert remembered.lines("user0", 60)
