"""The table of sessions: what an upgrade finds there, and stages that only go forward."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING

import pytest

from helpers.broker.peer_credentials import start_of
from helpers.broker.sessions.open_sessions import AUTHENTICATING, CONNECTING, LOGGED_IN, OpenSession, OpenSessions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers.broker.client_traffic import Traffic


class _Reporter:
    """Reports nothing."""

    async def watch(self, session: OpenSession) -> None:
        """Watch nothing."""

    async def report(self, session: OpenSession, traffic: Traffic | None) -> None:
        """Report nothing."""


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[OpenSessions]:
    """An empty table."""
    table = OpenSessions(tmp_path / "sessions", _Reporter())
    yield table
    table.close()


def _session(stage: str = CONNECTING) -> OpenSession:
    """Return a session whose process is this one."""
    start = start_of(os.getpid())
    assert start is not None
    details: dict[str, object] = {"remote": "192.0.2.2", "forced_command": False}
    return OpenSession(
        os.getpid(), start, "1-2", "alice", None, None, "ssh", None, 5.0, stage, "192.0.2.7 1 192.0.2.8 2", details
    )


async def test_a_session_comes_back_as_it_was(sessions: OpenSessions) -> None:
    """With its details, by its process and in the list."""
    sessions.begin(_session())
    assert sessions.find(os.getpid()) == _session()
    assert sessions.all() == [_session()]
    assert sessions.find(1) is None


async def test_stages_go_forward_once(sessions: OpenSessions) -> None:
    """A stage that has been reached before is no news, so that a session is in the log as started once."""
    sessions.begin(_session())
    assert sessions.advance(os.getpid(), AUTHENTICATING) == _session(AUTHENTICATING)
    assert sessions.advance(os.getpid(), AUTHENTICATING) is None
    assert sessions.advance(os.getpid(), LOGGED_IN) == _session(LOGGED_IN)
    assert sessions.advance(os.getpid(), LOGGED_IN) is None
    assert sessions.advance(os.getpid(), AUTHENTICATING) is None
    assert sessions.advance(1, LOGGED_IN) is None


async def test_a_table_of_the_version_before_is_kept(tmp_path: Path) -> None:
    """After an upgrade its sessions are listed, as ones that the remote has accepted."""
    path, start = tmp_path / "sessions", start_of(os.getpid())
    old = sqlite3.connect(path)
    columns = "pid, start, sid TEXT, user TEXT, client TEXT, key TEXT, transport TEXT, udp_port INTEGER, since REAL"
    old.execute(f"CREATE TABLE sessions ({columns}, PRIMARY KEY (pid, start))")
    row = (os.getpid(), start, "1-2", "alice", "192.0.2.7:1", None, "mosh", 60001, 5.0)
    old.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    old.commit()
    old.close()
    for _ in range(2):
        table = OpenSessions(path, _Reporter())
        (session,) = table.all()
        assert (session.sid, session.udp_port, session.stage, session.details) == ("1-2", 60001, LOGGED_IN, {})
        table.close()
