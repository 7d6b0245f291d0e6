"""What sshd's log says about its connections: the client, how it left, and which lines repeat others."""

from __future__ import annotations

import os

import pytest

from gatewayctl.sshd.connections import LOOK_AFTER, Connections

_MONITOR, _CHILD = 4711, 4712


def _connections(*lines: str) -> Connections:
    """Have root's monitor begin a connection with a child, which logs the lines."""
    connections = Connections()
    connections.note(_MONITOR, 'Connection from 192.0.2.7 port 40188 on 192.0.2.1 port 2222 rdomain ""', root=True)
    connections.note(_MONITOR, f"User child is on pid {_CHILD}", root=True)
    for line in lines:
        connections.note(_CHILD, line, root=False)
    return connections


@pytest.mark.parametrize(
    ("address", "client"), [("192.0.2.7", "192.0.2.7:40188"), ("2001:db8::1%eth0", "[2001:db8::1%eth0]:40188")]
)
def test_the_client_of_a_connection(address: str, client: str) -> None:
    """It is written as the broker writes it."""
    connections = Connections()
    connections.note(1, f'Connection from {address} port 40188 on ::1 port 2222 rdomain ""', root=True)
    found = connections.find(1)
    assert found is not None
    assert (found.client, found.ended) == (client, None)
    assert connections.find(2) is None


@pytest.mark.parametrize(
    ("line", "ended"),
    [
        ("Received disconnect from 192.0.2.7 port 40188:11: disconnected by user", "closed"),
        ("Received disconnect from 192.0.2.7 port 40188:2: Connection closed by x", "closed"),
        ("Connection closed by 192.0.2.7 port 40188", "lost"),
        ("Connection reset by 192.0.2.7 port 40188", "lost"),
        ("Timeout, client not responding from user alice 192.0.2.7 port 40188", "lost"),
        ("Read error from remote host 192.0.2.7 port 40188: Connection timed out", "lost"),
        ("ssh_dispatch_run_fatal: Connection from 192.0.2.7 port 40188: message authentication code incorrect", "lost"),
        ("Disconnected from user alice 192.0.2.7 port 40188", None),
        ("Close session: user alice from 192.0.2.7 port 40188 id 0", None),
    ],
)
def test_how_a_client_left(line: str, ended: str | None) -> None:
    """A goodbye, an end without one, and lines that say neither."""
    found = _connections(line).find(_MONITOR)
    assert found is not None
    assert found.ended == ended


def test_the_first_word_about_the_end_counts() -> None:
    """After its goodbye a client also closes the connection, and a lost one is not closed later."""
    goodbye, end = "Received disconnect from 192.0.2.7 port 1:11: x", "Connection closed by 192.0.2.7 port 1"
    for lines, ended in (((goodbye, end), "closed"), ((end, goodbye), "lost")):
        found = _connections(*lines).find(_MONITOR)
        assert found is not None
        assert found.ended == ended


def test_the_bytes_of_a_lost_client_are_sshds() -> None:
    """Only of a lost connection sshd logs them itself."""
    found = _connections(
        "Connection closed by 192.0.2.7 port 40188", "Transferred: sent 3132, received 3720 bytes"
    ).find(_MONITOR)
    assert found is not None
    assert found.traffic == (3132, 3720)


def test_a_gateway_that_stops_ends_what_has_not_ended() -> None:
    """A client that had left before is not counted among those that the gateway ended."""
    left, stays = _connections("Connection closed by 192.0.2.7 port 40188"), _connections()
    for connections, ended in ((left, "lost"), (stays, "stopped"), (Connections(), "stopped")):
        connections.stop()
        found = connections.find(_MONITOR)
        assert found is not None
        assert found.ended == ended


def test_another_connection_with_the_same_pid_begins_anew() -> None:
    """A pid is used again, and what happened before is forgotten."""
    connections = _connections("Connection closed by 192.0.2.7 port 40188")
    connections.note(_MONITOR, 'Connection from 192.0.2.8 port 9 on 192.0.2.1 port 2222 rdomain ""', root=True)
    found = connections.find(_MONITOR)
    assert found is not None
    assert (found.client, found.ended) == ("192.0.2.8:9", None)


@pytest.mark.parametrize(
    "text", ['Connection from 192.0.2.66 port 1 on 192.0.2.1 port 2222 rdomain ""', "User child is on pid 9"]
)
def test_only_root_announces(text: str) -> None:
    """A session's process, which is not root, changes neither whose lines are relayed nor a client's address."""
    connections = _connections(text)
    assert connections.find(_CHILD) is None
    assert not connections.has_child(9)
    assert connections.monitor_of(9) == 9


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ('Connection from 192.0.2.7 port 1 on 192.0.2.1 port 2222 rdomain ""', True),
        ("Accepted key ED25519 SHA256:x found at /run/x:1", True),
        ("Postponed publickey for alice from 192.0.2.7 port 1 ssh2 [preauth]", True),
        ("Starting session: forced-command (config) 'x' for alice from 192.0.2.7 port 1 id 0", True),
        ("Received disconnect from 192.0.2.7 port 1:11: disconnected by user", True),
        ("Received disconnect from 192.0.2.7 port 1:11: Bye Bye [preauth]", False),
        ("Accepted publickey for alice from 192.0.2.7 port 1 ssh2: ED25519 SHA256:x", False),
        ("Failed publickey for alice from 192.0.2.7 port 1 ssh2: ED25519 SHA256:x", False),
        ("Disconnected from user alice 192.0.2.7 port 1", False),
        ("Connection closed by authenticating user alice 192.0.2.7 port 1 [preauth]", False),
        ("Connection closed by 192.0.2.7 port 1", False),
        ("Invalid user Connection from  from 192.0.2.7 port 1", False),
    ],
)
def test_what_repeats_other_lines(text: str, detail: bool) -> None:  # noqa: FBT001
    """Verdicts, refusals and the last line of each connection are no details."""
    assert Connections().note(1, text, root=True) is detail


def test_connections_that_are_over_are_forgotten() -> None:
    """A gateway that was up for long keeps those that live, and a few that ended last."""
    alive, first = os.getpid(), 2**22 + 1  # above the largest process id that there can be (proc(5), pid_max)
    last = first + 20 * LOOK_AFTER
    connections, most = Connections(), 0
    for pid in (alive, *range(first, last + 1)):
        connections.note(pid, 'Connection from 192.0.2.7 port 1 on ::1 port 2 rdomain ""', root=True)
        connections.note(1, f"User child is on pid {pid}", root=True)
        most = max(most, len(connections))
    assert most <= 3 * LOOK_AFTER
    assert connections.find(alive) is not None
    assert connections.find(last) is not None
    assert connections.find(first) is None
    assert connections.has_child(last)
