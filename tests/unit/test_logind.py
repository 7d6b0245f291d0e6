"""Connections that are kept for as long as a mosh session lives, where the remote's logind would end it with them."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from helpers.broker.remote import logind
from helpers.broker.remote.logind import Logind
from helpers.broker.remote.pool import Completed, Connections
from lab.answers import MARKER
from lab.fakes import RecordedLog

pytestmark = pytest.mark.timeout(20)


class _Connection:
    """A connection to a remote whose logind answers what a test says."""

    address = "192.0.2.1"
    alive = True
    interactive = False
    round_trip_s, unacknowledged, lost_packets = 0.1, False, False

    def __init__(self, answer: bytes) -> None:
        self._answer, self.asked, self.is_closed = answer, 0, False

    def close(self) -> None:
        self.is_closed = True

    def prepare(self, timeout_s: float) -> None:
        del timeout_s

    def run(
        self,
        command: str,
        *,
        max_bytes: int,
        timeout_s: float,
        until: Callable[[bytes], object] | None = None,
        ahead: bool = False,
    ) -> Completed:
        del max_bytes, timeout_s, until, ahead
        self.asked += command == logind.ASK_COMMAND
        return Completed(b"\n%s %s\n" % (MARKER, self._answer), b"", 0, MARKER)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for mosh-client, and nothing to wait for."""
    monkeypatch.setattr(logind, "ASK_AFTER_S", 0.0)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process


async def _until(is_so: Callable[[], object]) -> None:
    while not is_so():  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(("answer", "kept"), [(b"b true", True), (b"b false", False), (b"", False), (b"true", False)])
async def test_a_connection_is_kept_where_its_end_would_end_sessions(
    client: subprocess.Popen[bytes], answer: bytes, *, kept: bool
) -> None:
    """It is retired like any other, and closed once the last session's process has ended; logind is asked once."""
    connection, log = _Connection(answer), RecordedLog()
    connections = Connections(lambda *_: connection)
    await connections.run("alice", lambda _: "x", max_bytes=10)
    watch = Logind(connections, log)
    for _ in range(2):
        watch.session_started("alice", client.pid)
    await _until(lambda: connection.asked)
    if not kept:
        await _until(lambda: not watch._tasks)
    connections.forget("alice")
    assert connection.is_closed is not kept
    client.communicate()
    await _until(lambda: connection.is_closed and not watch._tasks)
    assert connection.asked <= 2
    assert [event for event, _ in log.events] == ["remote_kills_processes"] * kept


async def test_a_session_that_has_ended_keeps_nothing(client: subprocess.Popen[bytes]) -> None:
    """A process that is gone, or was never there, holds no connection and is no fault."""
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
    log = RecordedLog()
    watch = Logind(Connections(lambda *_: _Connection(b"b true")), log)
    watch.session_started("nobody", client.pid)
    client.communicate()
    client.wait()
    watch.session_started("alice", client.pid)
    await _until(lambda: not watch._tasks)
    assert log.events == []
    assert len(os.listdir("/proc/self/fd")) == descriptors - 1  # noqa: PTH208 - without the pipe to the process
