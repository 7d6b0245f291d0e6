"""Connections that are kept for as long as a mosh session lives, where the remote's logind would end it with them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from helpers.broker.remote import logind
from helpers.broker.remote.logind import Logind
from helpers.broker.remote.pool import Completed, Connections
from lab.answers import MARKER
from lab.fakes import FakeConnection, RecordedLog
from lab.waiting import turn_until

pytestmark = pytest.mark.timeout(20)


def _answering(answer: bytes) -> FakeConnection:
    """Make a connection to a remote whose logind answers so."""
    completed = Completed(b"\n%s %s\n" % (MARKER, answer), b"", 0, MARKER)
    return FakeConnection(lambda _: completed)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for mosh-client, and nothing to wait for."""
    monkeypatch.setattr(logind, "ASK_AFTER_S", 0.0)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process


@pytest.mark.parametrize(("answer", "kept"), [(b"b true", True), (b"b false", False), (b"", False), (b"true", False)])
async def test_a_connection_is_kept_where_its_end_would_end_sessions(
    client: subprocess.Popen[bytes], answer: bytes, *, kept: bool
) -> None:
    """It is retired like any other, and closed once the last session's process has ended; logind is asked once."""
    connection, log = _answering(answer), RecordedLog()
    connections = Connections(lambda *_: connection)
    await connections.run("alice", lambda _: "x", max_bytes=10)
    watch = Logind(connections, log)
    for _ in range(2):
        watch.session_started("alice", client.pid)
    await turn_until(lambda: logind.ASK_COMMAND in connection.lines)
    if not kept:
        await turn_until(lambda: not watch._tasks)
    connections.forget("alice")
    assert connection.alive is kept
    client.communicate()
    await turn_until(lambda: not connection.alive and not watch._tasks)
    assert connection.lines.count(logind.ASK_COMMAND) <= 2
    assert [event for event, _ in log.events] == ["remote_kills_processes"] * kept


async def test_a_session_that_has_ended_keeps_nothing(client: subprocess.Popen[bytes]) -> None:
    """A process that is gone, or was never there, holds no connection and is no fault."""
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
    log = RecordedLog()
    watch = Logind(Connections(lambda *_: _answering(b"b true")), log)
    watch.session_started("nobody", client.pid)
    client.communicate()
    client.wait()
    watch.session_started("alice", client.pid)
    await turn_until(lambda: not watch._tasks)
    assert log.events == []
    assert len(os.listdir("/proc/self/fd")) == descriptors - 1  # noqa: PTH208 - without the pipe to the process
