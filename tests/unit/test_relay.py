"""The relay of sshd's syslog: one message is one line, from whom the kernel says, and from nobody else."""

from __future__ import annotations

import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayctl.relay import Relay

_Line = tuple[str, str, int, str]


def _relayed(*messages: bytes, trusted: bool = True) -> list[_Line]:
    """Send messages through a relay, and return the lines it wrote."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    lines: list[_Line] = []
    with ours, theirs:
        relay = Relay(ours, lambda _: trusted, lambda *line: lines.append(line))
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


def test_messages_come_in_their_order() -> None:
    """What is in the queue when the relay is told to end is written still."""
    assert [line[3] for line in _relayed(*(b"<38>sshd[1]: %d" % number for number in range(9)))] == list("012345678")


def test_strangers_are_not_relayed() -> None:
    """A uid that is neither root's nor a user's writes no line."""
    assert _relayed(b"<38>sshd[1]: Accepted publickey for root", trusted=False) == []


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
