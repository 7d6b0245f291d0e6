"""Names that the operator has locked: until when, and which."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from helpers.broker.accounts.locks import Locks
from lab.fakes import ManualClock


def test_a_lock_ends_by_itself() -> None:
    """It holds for its time and for its name; a new lock of the same name counts instead."""
    clock = ManualClock()
    with closing(Locks(":memory:", clock)) as locks:
        locks.lock("alice", 60)
        assert (locks.until("alice"), locks.until("bob")) == (clock.now_s + 60, None)
        locks.lock("alice", 10)
        clock.now_s += 10
        assert locks.until("alice") is None


def test_a_lock_can_be_lifted() -> None:
    """With 0 seconds; lifting one that is not there is no error."""
    with closing(Locks(":memory:")) as locks:
        locks.lock("alice", 60)
        locks.lock("bob", 60)
        for _ in range(2):
            locks.lock("alice", 0)
            assert locks.until("alice") is None
        assert locks.until("bob") is not None


def test_a_lock_survives_its_broker(tmp_path: Path) -> None:
    """Two brokers, of which one is about to go, have the same locks."""
    with closing(Locks(tmp_path / "locks")) as old, closing(Locks(tmp_path / "locks")) as new:
        old.lock("alice", 60)
        assert new.until("alice") == old.until("alice") is not None


def test_a_drain_lasts_until_it_is_ended(tmp_path: Path) -> None:
    """Over a change of brokers, with the last message."""
    with closing(Locks(tmp_path / "locks")) as old, closing(Locks(tmp_path / "locks")) as new:
        assert new.drained() is None
        old.drain("until noon")
        old.drain("until one")
        assert new.drained() == "until one"
        new.drain(None)
        assert old.drained() is None
