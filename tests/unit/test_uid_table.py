"""Names and uids: one each, kept apart for as long as anybody could tell."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.broker.accounts.uid_table import (
    RESERVED_NAMES,
    REUSE_AFTER_S,
    STRANGER_REUSE_AFTER_S,
    UidTable,
    uids_with_processes,
)
from lab.fakes import ManualClock

_UIDS = range(70_000, 70_004)


class World:
    """A clock, the uids that run something, and tables that see both.

    Args:
        path: The tables' file.
    """

    def __init__(self, path: Path) -> None:
        """Begin with nobody running anything."""
        self.path, self.clock, self.busy = path, ManualClock(1_000_000.0), set[int]()
        self._tables: list[UidTable] = []

    def table(self, uids: range = _UIDS) -> UidTable:
        """Open the table."""
        table = UidTable(self.path, uids, self.clock, lambda: self.busy)
        self._tables.append(table)
        return table

    def close(self) -> None:
        """Close what was opened."""
        for table in self._tables:
            table.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Make an empty table's file."""
    made = World(tmp_path / "users.sqlite3")
    yield made
    made.close()


def _fill(table: UidTable, names: str = "abcd") -> list[int | None]:
    return [table.uid_of(name, allocate=True) for name in names]


def test_every_name_has_a_uid_of_its_own(world: World) -> None:
    """Uids are given from the range's first to its last, and both directions agree."""
    table = world.table()
    uids = _fill(table)
    assert uids == list(_UIDS)
    assert [table.name_of(uid) for uid in _UIDS] == ["a", "b", "c", "d"]
    assert _fill(table) == uids


def test_asking_alone_makes_no_user(world: World) -> None:
    """A lookup that may not allocate finds nobody new, and leaves nothing behind."""
    table = world.table()
    assert table.uid_of("alice", allocate=False) is None
    assert table.name_of(_UIDS[0]) is None
    uid = table.uid_of("alice", allocate=True)
    assert table.uid_of("alice", allocate=False) == uid


def test_names_differ_by_case(world: World) -> None:
    """Alice and alice are two users, as on the remote."""
    table = world.table()
    assert table.uid_of("Alice", allocate=True) != table.uid_of("alice", allocate=True)


@pytest.mark.parametrize(
    "name", ["", "a b", "x" * 65, "é", "a\n", "a'; DROP TABLE users; --", "gateway+auth", "\ud800"]
)
def test_what_is_no_name_gets_no_uid(name: str, world: World) -> None:
    """A name that is none costs no uid."""
    table = world.table()
    assert table.uid_of(name, allocate=True) is None
    assert table.uid_of("a", allocate=True) == _UIDS[0]


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_reserved_names_get_no_uid(name: str, world: World) -> None:
    """Not users of ours: root, nobody and sshd are not users of ours."""
    assert world.table().uid_of(name, allocate=True) is None


@pytest.mark.parametrize("uid", [0, 1, -1, _UIDS.start - 1, _UIDS.stop, 2**32, 2**64])
def test_uids_of_others_have_no_name(uid: int, world: World) -> None:
    """No uid outside of the range is anybody's, root's least of all."""
    table = world.table()
    _fill(table)
    assert table.name_of(uid) is None


def test_root_has_an_invented_uid(world: World) -> None:
    """Root's sessions run as a uid of the range, the same one each time; no lookup of the name gives it one."""
    table = world.table()
    uid = table.uid_of_root()
    assert uid in _UIDS
    assert table.uid_of_root() == uid
    assert table.name_of(uid or 0) == "root"


def test_roots_uid_is_not_given_away_while_root_takes_it(world: World) -> None:
    """Root's session has no process by its uid yet when it asks for it: who comes then gets another, or none."""
    table = world.table()
    uid = table.uid_of_root()
    world.clock.now_s += REUSE_AFTER_S + 1
    assert table.uid_of_root() == uid
    new = [table.uid_of(name, allocate=True) for name in "abcd"]
    assert uid not in new
    assert (new[-1], table.uid_of_root()) == (None, uid)


def test_a_full_table_gives_nothing_away(world: World) -> None:
    """With every uid taken lately, a new name gets none, and nobody loses theirs."""
    table = world.table()
    uids = _fill(table)
    assert table.uid_of("e", allocate=True) is None
    assert table.uid_of_root() is None
    assert _fill(table) == uids


@pytest.mark.parametrize(("session", "after_s"), [(True, REUSE_AFTER_S), (False, STRANGER_REUSE_AFTER_S)])
def test_a_uid_is_reused_after_a_while_and_not_before(world: World, *, session: bool, after_s: float) -> None:
    """A uid is its owner's for so long; then the oldest goes to the new name. It takes less where nobody got in."""
    table = world.table()
    for uid in _fill(table):
        if session:
            table.note_session(uid or 0)
    world.clock.now_s += after_s
    assert table.uid_of("e", allocate=True) is None
    world.clock.now_s += 1
    assert table.uid_of("e", allocate=True) == _UIDS[0]
    assert table.name_of(_UIDS[0]) == "e"
    assert table.uid_of("a", allocate=False) is None


def test_invented_names_take_no_users_uid(world: World) -> None:
    """While there are uids of names that never had a session, a user's outlives them, however long it was not used."""
    table = world.table()
    _fill(table, "abcd")
    table.note_session(_UIDS[0])
    world.clock.now_s += REUSE_AFTER_S - 1
    for name in ("stranger1", "stranger2", "stranger3"):
        assert table.uid_of(name, allocate=True) not in {None, _UIDS[0]}
    assert table.uid_of("a", allocate=False) == _UIDS[0]


def test_a_busy_uid_is_never_reused(world: World) -> None:
    """While a process runs as it, a uid stays its owner's for ever."""
    table = world.table()
    _fill(table)
    world.clock.now_s += REUSE_AFTER_S * 1000
    world.busy = {*_UIDS} - {_UIDS[2]}
    assert table.uid_of("e", allocate=True) == _UIDS[2]
    assert table.uid_of("f", allocate=True) is None
    assert [table.name_of(uid) for uid in _UIDS] == ["a", "b", "e", "d"]


def test_a_lookup_keeps_a_name_from_being_forgotten(world: World) -> None:
    """Sshd's lookups count as use; the one that was not looked up for longest goes first."""
    table = world.table()
    _fill(table)
    world.clock.now_s += REUSE_AFTER_S + 1
    _fill(table, "abd")
    assert table.uid_of("e", allocate=True) == _UIDS[2]
    assert table.uid_of("f", allocate=True) is None


def test_a_lookup_by_others_does_not_keep_a_name(world: World) -> None:
    """Only sshd's lookups count as use: nobody on the machine can hold on to a name by asking for it."""
    table = world.table()
    _fill(table)
    world.clock.now_s += REUSE_AFTER_S + 1
    assert table.uid_of("a", allocate=False) == _UIDS[0]
    assert table.uid_of("e", allocate=True) == _UIDS[0]


def test_names_that_had_a_session_are_forgotten_last(world: World) -> None:
    """Names that strangers made up go before a user's, though the user's is older."""
    table = world.table()
    _fill(table, "ab")
    table.note_session(_UIDS[0])
    world.clock.now_s += 5
    _fill(table, "cd")
    world.clock.now_s += REUSE_AFTER_S + 1
    assert _fill(table, "efg") == [_UIDS[1], _UIDS[2], _UIDS[3]]
    assert table.name_of(_UIDS[0]) == "a"
    world.clock.now_s += 1
    assert table.uid_of("h", allocate=True) == _UIDS[0]


def test_a_session_starts_the_wait_anew(world: World) -> None:
    """A session that has just begun keeps its uid for REUSE_AFTER_S, whatever the time of the lookup."""
    table = world.table(range(70_000, 70_001))
    _fill(table, "a")
    world.clock.now_s += REUSE_AFTER_S + 1
    table.note_session(70_000)
    assert table.uid_of("b", allocate=True) is None


def test_a_clock_that_is_set_back_gives_nothing_away(world: World) -> None:
    """A name seen in what is now the future keeps its uid."""
    table = world.table()
    _fill(table)
    world.clock.now_s -= 10 * REUSE_AFTER_S
    assert table.uid_of("e", allocate=True) is None
    assert _fill(table) == list(_UIDS)


def test_the_table_outlives_its_process(world: World) -> None:
    """A broker that comes back knows every name and every session, and goes on where the range was left."""
    table = world.table()
    _fill(table, "ab")
    table.note_session(_UIDS[0])
    table.close()
    again = world.table()
    assert again.name_of(_UIDS[0]) == "a"
    assert _fill(again, "bcd") == list(_UIDS[1:])
    world.clock.now_s += REUSE_AFTER_S + 1
    assert again.uid_of("e", allocate=True) == _UIDS[1]


def test_two_brokers_share_one_table(world: World) -> None:
    """During a reload the old broker and the new one give the same answers."""
    old, new = world.table(), world.table()
    assert [old.uid_of("a", allocate=True), new.uid_of("b", allocate=True)] == [_UIDS[0], _UIDS[1]]
    assert new.uid_of("a", allocate=True) == _UIDS[0]
    assert old.name_of(_UIDS[1]) == "b"


def test_two_brokers_at_the_same_moment(world: World) -> None:
    """A name that one broker adds while another is about to give the same uid away keeps it."""
    world.table().close()  # the schema is there
    others: list[int | None] = []

    def other_broker() -> None:
        with closing(UidTable(world.path, _UIDS)) as table:
            others.append(table.uid_of("eve", allocate=True))

    thread = threading.Thread(target=other_broker)

    def clock() -> float:
        # Between the look for a free uid and its being taken. The other one either gets through now, or has to wait
        # until we are done: then this wait ends by its timeout.
        if thread.ident is None:
            thread.start()
            thread.join(0.2)
        return world.clock()

    with closing(UidTable(world.path, _UIDS, clock, lambda: ())) as table:
        ours = table.uid_of("bob", allocate=True)
        thread.join()
        assert ours is not None
        assert [ours] != others
        assert table.name_of(ours) == "bob"
        assert table.uid_of("bob", allocate=False) == ours


def test_a_changed_range_gives_no_old_uid_away(world: World) -> None:
    """After a restart with another range no uid of the old one is answered, in either direction, root's neither."""
    table = world.table()
    _fill(table, "ab")
    table.uid_of_root()
    table.close()
    moved = world.table(range(80_000, 80_010))
    assert moved.uid_of("a", allocate=False) is None
    assert all(moved.name_of(uid) is None for uid in _UIDS)
    assert moved.uid_of_root() not in _UIDS


def test_a_changed_range_locks_nobody_out(world: World) -> None:
    """Users of the old range get a uid of the new one at their next login."""
    table = world.table()
    _fill(table, "ab")
    table.close()
    moved = world.table(range(80_000, 80_010))
    assert moved.uid_of("a", allocate=True) == 80_000
    assert moved.name_of(80_000) == "a"
    assert moved.uid_of("b", allocate=True) == 80_001


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["sshd", "ask", "session", "wait", "root"]), st.sampled_from("abcdefgh")), max_size=40
    )
)
def test_no_history_mixes_two_names(steps: list[tuple[str, str]]) -> None:
    """Whatever happens in whichever order: a uid has one name, a name one uid, all of them in the range."""
    clock = ManualClock(1_000_000.0)
    with closing(UidTable(":memory:", _UIDS, clock, lambda: {_UIDS[1]})) as table:
        first_busy_owner = None
        for step, name in steps:
            if step == "wait":
                clock.now_s += REUSE_AFTER_S / 3
            elif step == "session" and (uid := table.uid_of(name, allocate=False)) is not None:
                table.note_session(uid)
            else:
                table.uid_of_root() if step == "root" else table.uid_of(name, allocate=step == "sshd")
            owners = {uid: owner for uid in _UIDS if (owner := table.name_of(uid)) is not None}
            assert len(set(owners.values())) == len(owners)
            assert all(table.uid_of(owner, allocate=False) == uid for uid, owner in owners.items())
            first_busy_owner = first_busy_owner or owners.get(_UIDS[1])
            assert owners.get(_UIDS[1]) == first_busy_owner


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    """A file that is not a database, and a directory that is not there, are errors at the start."""
    bad = tmp_path / "users.sqlite3"
    bad.write_text("not a database, and long enough to be seen as none" * 100)
    for path in (bad, tmp_path / "missing" / "users.sqlite3"):
        with pytest.raises(sqlite3.Error):
            UidTable(path, _UIDS)


def test_who_runs_something(tmp_path: Path) -> None:
    """The uids of live processes are the owners of their directories in /proc, and of nothing else there."""
    assert os.geteuid() in uids_with_processes()
    for name in ("self", "1x", "sys", "1"):
        (tmp_path / name).mkdir()
    os.chown(tmp_path / "sys", 4711, 4711)
    os.chown(tmp_path / "1", 4712, 4712)
    assert uids_with_processes(tmp_path) == {4712}
    (tmp_path / "123").mkdir()
    assert uids_with_processes(tmp_path) == {4712, os.geteuid()}


def test_hidden_processes_are_not_taken_for_none(tmp_path: Path) -> None:
    """Where /proc shows only one's own (hidepid), no uid can be called free, and none is given to another name."""
    (tmp_path / "123").mkdir()
    with pytest.raises(PermissionError):
        uids_with_processes(tmp_path)

    def busy() -> set[int]:
        return uids_with_processes(tmp_path)

    now_s = [1000.0]
    with closing(UidTable(":memory:", range(70_000, 70_001), lambda: now_s[0], busy)) as table:
        assert table.uid_of("a", allocate=True) == 70_000
        now_s[0] += 10 * REUSE_AFTER_S
        assert table.uid_of("b", allocate=True) is None


def test_a_process_that_ends_while_it_is_counted(tmp_path: Path) -> None:
    """A process directory that is gone once it is looked at is left out."""
    (tmp_path / "7").symlink_to(tmp_path / "gone")
    (tmp_path / "1").mkdir()
    assert uids_with_processes(tmp_path) == {os.geteuid()}
