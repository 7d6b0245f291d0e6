"""Tries out whether mosh's UDP gets through, with a real mosh-client on a terminal of its own.

The mosh-server at the other end runs ``cat`` and is for this alone: nothing is sent with a session's key, and no packet
format is ours. ``mosh-client -v`` writes "Received state" for each state that arrives (mosh 1.4.0), at first after one
round trip. Text that is typed comes back in one datagram.
"""

from __future__ import annotations

import fcntl
import os
import pty
import random
import select
import signal
import string
import struct
import subprocess
import termios
import time
from contextlib import suppress
from dataclasses import dataclass

SILENCE_S = 1.1
"""Seconds, on top of the round trip, after which silence means that UDP does not get through: none of 1,500 was wrong
at 29 % loss each way (measured)."""

LARGE_LETTERS = 1500
"""Letters that come back in one datagram of 1,252 bytes: random, since mosh compresses."""

_ROWS, _COLUMNS = 40, 100
_TAIL = 12
"""How many of the last letters must appear on the screen, in one piece."""

_REFUSALS = (b"refused", b"prohibited", b"unreachable", b"No route", b"not permitted")


@dataclass(frozen=True)
class UdpResult:
    """What a probe found.

    Attributes:
        outcome: ``passes``, ``silent`` or ``refused``: an ICMP error, or a packet filter of this machine.
        ms: Milliseconds until the first answer, or until the probe gave up.
        large: Whether large datagrams get through, too; None if none does.
    """

    outcome: str
    ms: float
    large: bool | None = None


def probe(address: str, port: int, key: str, round_trip_s: float) -> UdpResult:
    """Try a mosh-server that runs ``cat``, and end it.

    Args:
        address: Its numeric address.
        port: Its UDP port.
        key: Its MOSH_KEY.
        round_trip_s: The round trip, in seconds.

    Raises:
        OSError: mosh-client cannot be started.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    environ = {
        "PATH": os.environ.get("PATH", os.defpath),
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
        "MOSH_KEY": key,
        "MOSH_PREDICTION_DISPLAY": "never",  # only the remote's echo counts
        "MOSH_ESCAPE_KEY": "",
    }
    argv = ["mosh-client", "-v", address, str(port)]
    try:
        client = subprocess.Popen(
            argv, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environ, start_new_session=True
        )
    except OSError:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    try:
        assert client.stderr is not None  # noqa: S101 - it is a pipe
        return _try(_Screen(ours, client.stderr.fileno()), round_trip_s)
    finally:
        _end(client, ours, round_trip_s)


class _Screen:
    """What mosh-client writes: on its terminal, and to standard error.

    Args:
        terminal: Our end of its terminal.
        errors: Our end of its standard error.
    """

    def __init__(self, terminal: int, errors: int) -> None:
        self._output = {terminal: bytearray(), errors: bytearray()}
        self._terminal, self._errors = terminal, errors

    @property
    def text(self) -> bytes:
        """All that was written to the terminal."""
        return bytes(self._output[self._terminal])

    @property
    def errors(self) -> bytes:
        """All that was written to standard error."""
        return bytes(self._output[self._errors])

    def type(self, text: bytes) -> None:
        """Type text."""
        os.write(self._terminal, text)

    def wait_for(self, *words: bytes, timeout_s: float) -> bool:
        """Wait until one of the words appears."""
        deadline = time.monotonic() + timeout_s
        while not any(word in output for word in words for output in self._output.values()):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            for descriptor in select.select(list(self._output), [], [], left_s)[0]:
                try:
                    chunk = os.read(descriptor, 65536)
                except OSError:  # EIO: mosh-client has ended
                    chunk = b""
                if not chunk:
                    return False
                self._output[descriptor] += chunk
        return True


def _try(screen: _Screen, round_trip_s: float) -> UdpResult:
    began = time.monotonic()
    patience_s = SILENCE_S + round_trip_s
    screen.wait_for(b"Received state", *_REFUSALS, timeout_s=patience_s)
    ms = (time.monotonic() - began) * 1000
    if b"Received state" not in screen.errors:
        refused = any(word in screen.errors or word in screen.text for word in _REFUSALS)
        return UdpResult("refused" if refused else "silent", ms)
    letters = "".join(random.choices(string.ascii_lowercase, k=LARGE_LETTERS)).encode()  # noqa: S311 - not secret
    screen.type(letters)
    # Lost datagrams are sent again, so a lossy WAN takes a few round trips.
    return UdpResult("passes", ms, screen.wait_for(letters[-_TAIL:], timeout_s=2 * patience_s))


def _end(client: subprocess.Popen[bytes], terminal: int, round_trip_s: float) -> None:
    """End mosh-client, which says goodbye to its mosh-server (mosh-client, SIGTERM)."""
    client.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + SILENCE_S + round_trip_s
    while client.poll() is None and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.05)[0]:
            with suppress(OSError):
                os.read(terminal, 65536)
    client.kill()
    client.wait()
    os.close(terminal)
    if client.stderr is not None:
        client.stderr.close()
