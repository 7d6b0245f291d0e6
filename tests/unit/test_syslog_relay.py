"""The relay of sshd's syslog: one message is one line, from whom the kernel says, and from nobody else."""

from __future__ import annotations

import os
import socket
import subprocess
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayctl.sshd.connections import Connections
from gatewayctl.sshd.syslog_relay import SyslogRelay

_Line = tuple[str, str, int, str]


def _relayed(*messages: bytes) -> list[_Line]:
    """Send messages through a relay, as root where the tests are root's, and return the lines it wrote."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    lines: list[_Line] = []
    with ours, theirs:
        relay = SyslogRelay(ours, Connections(), lambda *line: lines.append(line))
        thread = threading.Thread(target=relay.serve)
        thread.start()
        for message in messages:
            theirs.send(message)
        ours.shutdown(socket.SHUT_RD)
        thread.join()
    return lines


def test_a_message_is_a_line_with_the_senders_process_id() -> None:
    """The kernel's word on the process counts, not the message's own."""
    (line,) = _relayed(b"<38>Jan  2 03:04:05 sshd[1]: Accepted publickey for alice")
    assert line == ("info", "sshd", os.getpid(), "Accepted publickey for alice")


@pytest.mark.parametrize(
    ("priority", "level"), [(32, "error"), (35, "error"), (36, "warning"), (38, "info"), (39, "debug")]
)
def test_severities(priority: int, level: str) -> None:
    """Syslog's eight severities become the four of this log."""
    assert _relayed(b"<%d>sshd[1]: x" % priority)[0][0] == level


def test_a_detail_is_written_at_debug_and_an_error_is_not() -> None:
    """What another line says as well is left to the debug level; an error with the same words stays one."""
    levels = [line[0] for line in _relayed(b"<38>sshd[1]: Accepted key x", b"<35>sshd[1]: Accepted key x")]
    assert levels == ["debug", "error"]


def test_a_connection_that_was_reset_still_has_its_address() -> None:
    """Of such a connection sshd knows no address any more; its line has the one that it began with."""
    begin = b'<38>sshd[1]: Connection from 2001:db8::7 port 40188 on ::1 port 2222 rdomain ""'
    for address in (b"UNKNOWN port -1", b"UNKNOWN port 65535"):
        lines = _relayed(begin, b"<38>sshd[1]: Connection closed by %s" % address)
        assert lines[1][3] == "Connection closed by 2001:db8::7 port 40188"
    assert _relayed(b"<38>sshd[1]: Connection closed by UNKNOWN port -1")[0][3].endswith(" by UNKNOWN port -1")


def test_messages_come_in_their_order() -> None:
    """What is in the queue when the relay is told to end is written still."""
    assert [line[3] for line in _relayed(*(b"<38>sshd[1]: %d" % number for number in range(9)))] == list("012345678")


def _say_as(uid: int, sock: socket.socket, message: bytes, announced: bool) -> None:  # noqa: FBT001
    """Send a message from a process of another uid, which root's sshd has called its own, or not."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setresuid(uid, uid, uid)
        os.read(told, 1)
        sock.send(message)
        os._exit(0)
    if announced:
        sock.send(b"<38>sshd[1]: User child is on pid %d" % pid)
    os.write(tell, b"x")
    os.waitpid(pid, 0)
    os.close(told)
    os.close(tell)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be others")
@pytest.mark.parametrize("announced", [False, True])
def test_of_others_only_sshds_own_children_are_relayed(*, announced: bool) -> None:
    """A session's uid writes no line, but for the one process that root's sshd has said is its own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    lines: list[_Line] = []
    with ours, theirs:
        relay = SyslogRelay(ours, Connections(), lambda *line: lines.append(line))
        _say_as(4711, theirs, b"<38>sshd[1]: Accepted publickey for root", announced)
        thread = threading.Thread(target=relay.serve)
        thread.start()
        ours.shutdown(socket.SHUT_RD)
        thread.join()
    assert ["Accepted" in line[3] for line in lines] == ([False, True] if announced else [])
    # A child's lines have the pid of the monitor that announced it.
    assert {line[2] for line in lines} == ({os.getpid()} if announced else set())


@pytest.mark.parametrize("first", ["the client", "the session"])
def test_what_came_first_counts_however_late_it_is_seen(first: str) -> None:
    """The kernel has the order of a session's end and of sshd's line that its client has left."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    connections = Connections()
    connections.note(7, 'Connection from 192.0.2.7 port 40188 on ::1 port 2222 rdomain ""', root=True)
    connections.note(7, f"User child is on pid {os.getpid()}", root=True)
    with ours, theirs, subprocess.Popen(["cat"], stdin=subprocess.PIPE) as session:
        relay = SyslogRelay(ours, connections, lambda *_: None)
        relay.watch_session(session.pid, 7)

        def ends() -> None:
            session.kill()
            os.waitid(os.P_PID, session.pid, os.WEXITED | os.WNOWAIT)

        def leaves() -> None:
            theirs.send(b"<38>sshd[1]: Connection closed by 192.0.2.7 port 40188")

        for step in (ends, leaves) if first == "the session" else (leaves, ends):
            step()
        thread = threading.Thread(target=relay.serve)
        thread.start()
        relay.wait_for_session(session.pid)
        ours.shutdown(socket.SHUT_RD)
        thread.join()
    found = connections.of_session(session.pid, 7)
    assert found is not None
    assert found.ended == (None if first == "the session" else "lost")
    now = connections.find(7)
    assert now is not None
    assert now.ended == "lost"


def test_a_session_that_has_ended_already_is_not_watched() -> None:
    """Its connection counts as it is."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        relay = SyslogRelay(ours, Connections(), lambda *_: None)
        relay.watch_session(2**22 + 1, 7)
        relay.wait_for_session(2**22 + 1)


def test_other_programs_are_not_relayed() -> None:
    """Nothing but sshd speaks there: what calls itself the broker is not the broker."""
    assert _relayed(b"<38>broker[1]: session_started", b"<38>gatewayctl[1]: ready") == []


@pytest.mark.parametrize("message", [b"", b"x", b"<38>", b"<38>no tag", b"<9999>sshd[1]: x", b"<38>s d[1]: x", b"\0"])
def test_what_is_no_message_is_dropped(message: bytes) -> None:
    """Garbage writes no line, and does not end the relay."""
    assert [line[3] for line in _relayed(message or b" ", b"<38>sshd[1]: next")] == ["next"]


@given(st.binary(max_size=300))
def test_no_text_makes_a_second_line(text: bytes) -> None:
    """Whatever a message holds, its line has no control character: no newline, no escape sequence."""
    for line in _relayed(b"<38>sshd[1]: " + text):
        assert line[3].isprintable() or all(ord(char) > 0x9F or char.isprintable() for char in line[3])
        assert len(line[3].splitlines()) <= 1
