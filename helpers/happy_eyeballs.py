"""Connects to the first of the remote's addresses that answers, with staggered attempts as in RFC 8305, section 5.

It is also ssh's ProxyCommand for a remote with several addresses (ssh_config(5), ProxyUseFdpass): it passes the
connected socket to ssh and exits. If there is only one address, ssh connects by itself.
"""

from __future__ import annotations

import _socket as socket  # socket's own class is not needed here, and adds 5 ms to a helper's start
import select
import struct
import sys
import time
from posix import strerror, write  # os takes 4 ms

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of the helper's time
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

TIMEOUTS_S = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0)
"""Timeouts, in seconds, of the attempts to reach the remote, in order. The kernel by itself would retransmit a lost
SYN after 1, 3 and 7 s (RFC 6298): at high loss the second wait alone takes longer than a login. The last attempt is for
a remote with a long round trip; in it the kernel sends a second SYN. At 29 % loss each way, nine SYNs fail 2 times in
1,000, and five 30 times. Their sum is the longest time."""

ATTEMPT_DELAY_S = 0.5
"""Seconds after which the next address is tried in parallel to those that have not answered. RFC 8305 recommends 0.25,
and 2 at most; a remote with a long round trip must not get two connections for each login."""

CONNECTED = b"gateway: connected to "
"""Precedes the address that was reached, on the first line of standard error, if requested."""


def connect(
    addresses: Sequence[tuple[int, Any]],
    make: Callable[[int], Any],
    timeouts_s: Sequence[float] = TIMEOUTS_S,
    delay_s: float = ATTEMPT_DELAY_S,
) -> tuple[Any, int]:
    """Connect to the first address that answers.

    An attempt that times out is repeated while fewer attempts have begun than ``timeouts_s`` has entries; each address
    is tried once in any case.

    Args:
        addresses: Families and addresses as in socket(2) and connect(2), the preferred one first; at least one.
        make: Makes a socket of a family, with its options; raises OSError if the kernel does not support the family.
        timeouts_s: Timeouts of the attempts, in seconds, in the order in which they begin; their sum is the longest
            time.
        delay_s: Seconds after which the next address is tried as well. After a refusal it is tried at once.

    Returns:
        The connected socket, in blocking mode, and the index of its address.

    Raises:
        TimeoutError: Some address does not answer, and none connects.
        OSError: Every address refuses or cannot be reached: ConnectionRefusedError if one refuses.
    """
    race = _Race(addresses, make, timeouts_s, delay_s)
    try:
        return race.run()
    finally:
        race.close()


class _Race:
    """The attempts of one connection; see `connect` for the arguments."""

    def __init__(
        self,
        addresses: Sequence[tuple[int, Any]],
        make: Callable[[int], Any],
        timeouts_s: Sequence[float],
        delay_s: float,
    ) -> None:
        self._addresses, self._make, self._timeouts_s, self._delay_s = addresses, make, timeouts_s, delay_s
        self._most = max(len(timeouts_s), len(addresses))
        self._begun = 0
        self._queue = list(range(len(addresses)))
        self._under_way: dict[int, tuple[Any, int, float]] = {}  # by descriptor: socket, address, and deadline
        self._poll = select.poll()
        self._next_s = 0.0
        self._error: OSError = TimeoutError("no answer")

    def run(self) -> tuple[Any, int]:
        """Wait for the first attempt that connects; raises the errors of `connect`."""
        end_s = time.monotonic() + sum(self._timeouts_s)
        while (now := time.monotonic()) < end_s:
            self._renew(now)
            if self._queue and (now >= self._next_s or not self._under_way):
                self._begin(self._queue.pop(0), now)
            elif not self._under_way:
                raise self._error
            connected = self._wait(min(self._wake_s(end_s), end_s) - now)
            if connected is not None:
                return connected
        raise TimeoutError("no answer")

    def _begin(self, number: int, now: float) -> None:
        family, address = self._addresses[number]
        until_s = now + self._timeouts_s[min(self._begun, len(self._timeouts_s) - 1)]
        self._begun += 1
        try:
            sock = self._make(family)
        except OSError as error:
            self._failed(error)
            return
        try:
            sock.settimeout(0)
            sock.connect(address)
        except BlockingIOError:
            pass
        except OSError as error:
            sock.close()
            self._failed(error)
            return
        self._under_way[sock.fileno()] = sock, number, until_s
        self._poll.register(sock.fileno(), select.POLLOUT)
        self._next_s = now + self._delay_s

    def _failed(self, error: OSError) -> None:
        """Keep the most informative error, and let the next attempt begin at once."""
        if not isinstance(self._error, ConnectionRefusedError):
            self._error = error
        self._next_s = 0.0

    def _renew(self, now: float) -> None:
        """Give up attempts that have timed out, if others may begin in their place."""
        for sock, number, until_s in list(self._under_way.values()):
            if now >= until_s and self._begun + len(self._queue) < self._most:
                self._drop(sock)
                self._queue.append(number)

    def _wake_s(self, end_s: float) -> float:
        """Return the time of the next timeout or attempt."""
        if not self._under_way:
            return 0.0
        if self._queue:
            return self._next_s
        if self._begun >= self._most:
            return end_s
        return min(until_s for _, _, until_s in self._under_way.values())

    def _wait(self, patience_s: float) -> tuple[Any, int] | None:
        for file, _ in self._poll.poll(max(0.0, patience_s * 1000)):
            sock, number, _ = self._under_way[file]
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                self._poll.unregister(file)
                del self._under_way[file]
                sock.settimeout(None)
                return sock, number
            self._drop(sock)
            self._failed(OSError(code, strerror(code)))
        return None

    def _drop(self, sock: socket.socket) -> None:
        self._poll.unregister(sock.fileno())
        del self._under_way[sock.fileno()]
        sock.close()

    def close(self) -> None:
        """Give up all attempts."""
        for sock, _, _ in list(self._under_way.values()):
            self._drop(sock)


def main(argv: list[str]) -> int:
    """Connect, and send the socket over standard output, a unix socket: one byte with SCM_RIGHTS (unix(7)).

    Args:
        argv: ``say`` or ``quiet``: whether to write the address that was reached to standard error; the port; the
            addresses, the preferred one first.

    Returns:
        1 if no address connects; the reason is on standard error.
    """
    say, port, *hosts = argv
    addresses = [_numeric(host, port) for host in hosts]
    try:
        sock, number = connect(addresses, _make)
    except OSError as error:
        reason = "does not answer" if isinstance(error, TimeoutError) else error.strerror
        print(f"gateway: the remote host cannot be reached: {', '.join(hosts)}: {reason}", file=sys.stderr)
        return 1
    if say == "say":
        write(2, CONNECTED + hosts[number].encode("ascii") + b"\n")
    out = socket.socket(fileno=1)
    out.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", sock.fileno()))])
    out.detach()
    return 0


def _numeric(host: str, port: str) -> tuple[int, Any]:
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    family, _, _, _, address = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, flags)[0]
    return family, address


def _make(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # as ssh does (ssh_config(5), TCPKeepAlive)
    return sock


def proxy_options(launch: Sequence[str], addresses: Sequence[str], port: int, *, say: bool) -> list[str]:
    """Return ssh's options for a remote with several addresses.

    Args:
        launch: The words that start a helper: see `helpers.launch`.
        addresses: The numeric addresses, the preferred one first.
        port: The remote's port.
        say: Whether to write the address that was reached as the first line of standard error: see `connected_to`.
    """
    words = [*launch, "dial", "say" if say else "quiet", str(port), *addresses]
    # ssh prepends "exec", and passes the command to a shell.
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    return [f"ProxyCommand={quoted.replace('%', '%%')}", "ProxyUseFdpass=yes"]


def connected_to(errors: bytes) -> str | None:
    """Read the address that was reached from ssh's standard error; None if it does not begin with that line.

    The line is written before ssh talks to the remote, so the remote cannot forge it.
    """
    line, end, _ = errors.partition(b"\n")
    return line[len(CONNECTED) :].decode("ascii") if end and line.startswith(CONNECTED) else None
