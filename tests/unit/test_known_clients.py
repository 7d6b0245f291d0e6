"""Who has been here before: by user and address, or by user and key, and by no name alone."""

from __future__ import annotations

import pytest

from helpers.broker.known_clients import KNOWN_CLIENT_TTL_S, MAX_LOGINS, KnownClients
from lab.fakes import ManualClock

_KEY, _OTHER_KEY = "SHA256:a", "SHA256:b"


@pytest.mark.parametrize(
    ("user", "marks", "known"),
    [
        ("alice", ("192.0.2.7", _KEY), True),
        ("alice", ("192.0.2.7", _OTHER_KEY), True),
        ("alice", ("192.0.2.8", _KEY), True),
        ("alice", (None, _KEY), True),
        ("alice", ("192.0.2.8", _OTHER_KEY), False),
        ("alice", (None, None), False),
        ("alice", (), False),
        ("bob", ("192.0.2.7", _KEY), False),
    ],
)
def test_a_user_is_known_by_address_or_key(user: str, marks: tuple[str | None, ...], *, known: bool) -> None:
    """Neither another user with the same marks is, nor the same name with others."""
    familiar = KnownClients()
    familiar.note("alice", "192.0.2.7", _KEY)
    familiar.note("bob", None, None)
    assert familiar.knows(user, *marks) is known


def test_a_login_is_forgotten_after_a_day() -> None:
    """An address goes to others, and a key is lost."""
    clock = ManualClock()
    familiar = KnownClients(clock)
    familiar.note("alice", "192.0.2.7")
    clock.now_s += KNOWN_CLIENT_TTL_S - 1
    assert familiar.knows("alice", "192.0.2.7")
    clock.now_s += 2
    assert not familiar.knows("alice", "192.0.2.7")


def test_memory_is_bounded() -> None:
    """However many log in, no more pairs are kept than there is room for."""
    familiar = KnownClients()
    for number in range(MAX_LOGINS + 10):
        familiar.note(f"user{number}", "192.0.2.7")
    assert len(familiar._logins) == MAX_LOGINS
