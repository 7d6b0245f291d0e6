"""The emulated WAN: a TUN device in each of two networks, joined by one process that delays and drops.

``tc netem`` is missing from many kernels; TUN devices are not. ``Wan`` is what tests hold; ``python -m lab.wan``
is the process, which reads one JSON object a line (changes of ``link.Conditions``) on standard input and answers
each with its counters. When standard input ends, so does it.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lab.link import Conditions, Link, Turns
from lab.room import DIE_WITH_PARENT, PLAIN_ENVIRONMENT, Room, entered_network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

NEAR_IPV4, FAR_IPV4 = "192.0.2.1", "192.0.2.2"  # RFC 5737: for documentation, routed nowhere
NEAR_IPV6, FAR_IPV6 = "2001:db8::1", "2001:db8::2"  # RFC 3849
INTERFACE = "wan0"

# Linux, linux/if_tun.h.
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001

_MTU_BYTES = 1500
_BATCH_PACKETS = 64
# More than a device queues (txqueuelen is 500): whatever was sent before a change of weather.
_ALL_PACKETS = 1000


@dataclass(frozen=True)
class Direction:
    """What was offered to one direction so far, lost packets included.

    Attributes:
        by_port: Packets by protocol (``tcp``, ``udp``, ``other``) and the remote's port.
        bytes: Bytes with IP headers.
        lost: Packets that did not arrive.
    """

    by_port: dict[tuple[str, int], int]
    bytes: int
    lost: int

    def packets(self, protocol: str | None = None, port: int | None = None) -> int:
        """Count packets, of one protocol and one port of the remote where given."""
        return sum(
            count
            for (its_protocol, its_port), count in self.by_port.items()
            if protocol in {None, its_protocol} and port in {None, its_port}
        )


@dataclass(frozen=True)
class Traffic:
    """The counters of both directions.

    Attributes:
        up: Towards the remote.
        down: From it.
        turns: How often the sides took turns to send data, by the remote's TCP port: two are a round trip.
    """

    up: Direction
    down: Direction
    turns: dict[int, int]


class Wan:
    """The WAN between two rooms.

    Args:
        near: The gateway's side.
        far: The remote's side.
        conditions: The weather at the start.
        seed: Decides with its order which packet is lost.
        errors: A file for what the process complains about.
    """

    def __init__(self, near: Room, far: Room, conditions: Conditions, *, seed: int, errors: IO[bytes]) -> None:
        """Start the process, and wait until packets can pass."""
        self.conditions = conditions
        self.seed = seed
        namespaces = [f"/proc/{room.pid}/ns/net" for room in (near, far)]
        self._process = subprocess.Popen(
            [*DIE_WITH_PARENT, sys.executable, "-m", "lab.wan", *namespaces, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**PLAIN_ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[1])},
            start_new_session=True,
        )
        self._ask(asdict(conditions))

    @property
    def pid(self) -> int:
        """The process id of the emulator."""
        return self._process.pid

    def _ask(self, request: dict[str, Any]) -> Traffic:
        """Send one request and read the counters."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = b""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            message = "the WAN emulator has ended; its reasons are in the lab's errors"
            raise RuntimeError(message)
        *directions, turns = json.loads(line)
        up, down = (
            Direction({(protocol, port): count for protocol, port, count in by_port}, total_bytes, lost)
            for by_port, total_bytes, lost in directions
        )
        return Traffic(up, down, dict(turns))

    def change(self, **changes: Any) -> None:
        """Change the weather; it holds when this returns."""
        self.conditions = replace(self.conditions, **changes)
        self._ask(asdict(self.conditions))

    @contextmanager
    def weather(self, **changes: Any) -> Iterator[None]:
        """Change the weather for a while, and put it back."""
        before = self.conditions
        self.change(**changes)
        try:
            yield
        finally:
            self.change(**asdict(before))

    def traffic(self) -> Traffic:
        """Read the counters."""
        return self._ask({})

    def close(self) -> None:
        """End the process; its devices go with it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def _open_tun(namespace: str, addresses: tuple[str, str], peers: tuple[str, str]) -> int:
    """Make a TUN device in a network namespace, give it its addresses, and return its descriptor."""
    commands = (
        f"link set {INTERFACE} mtu {_MTU_BYTES} addrgenmode none up\n"
        f"address add {addresses[0]} peer {peers[0]} dev {INTERFACE}\n"
        f"address add {addresses[1]} peer {peers[1]} dev {INTERFACE} nodad\n"
    )
    with entered_network(namespace):
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), _IFF_TUN_NO_PI))
        subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True, stdout=subprocess.DEVNULL)
    return descriptor


def _move(descriptor: int, link: Link, max_packets: int = _BATCH_PACKETS) -> None:
    """Read what waits on a device into a link, a bounded batch at a time."""
    with suppress(BlockingIOError):
        for _ in range(max_packets):
            link.offer(os.read(descriptor, 65536), time.monotonic())


def _deliver(descriptor: int, link: Link) -> None:
    """Write what is due to the device at the other end."""
    for packet in link.due(time.monotonic()):
        # EAGAIN is a full queue, EIO a device that is down: both are a lost packet to IP.
        with suppress(OSError):
            os.write(descriptor, packet)


def _obey(line: bytes, links: list[Link]) -> bytes:
    """Carry out one request and return the counters as a line."""
    if changes := json.loads(line):
        for link in links:
            link.conditions = replace(link.conditions, **changes)
            if link.conditions.blackout:
                link.clear()
    counters = [[[(*key, count) for key, count in link.packets.items()], link.bytes, link.lost] for link in links]
    return json.dumps([*counters, list(links[0].turns.by_port.items())]).encode() + b"\n"


def main() -> None:
    """Join the two networks named on the command line until standard input ends."""
    near, far = (
        _open_tun(sys.argv[1], (NEAR_IPV4, NEAR_IPV6), (FAR_IPV4, FAR_IPV6)),
        _open_tun(sys.argv[2], (FAR_IPV4, FAR_IPV6), (NEAR_IPV4, NEAR_IPV6)),
    )
    turns = Turns()
    up, down = (Link(Conditions(), int(sys.argv[3]), direction, turns) for direction in ("up", "down"))
    # The delay is the product: come before the programs whose waiting is measured.
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    pending = b""
    while True:
        dues = [due for due in (up.next_due_s(), down.next_due_s()) if due is not None]
        wait_s = max(0.0, min(dues) - time.monotonic()) if dues else None
        readable, _, _ = select.select([near, far, 0], [], [], wait_s)
        if near in readable:
            _move(near, up)
        if far in readable:
            _move(far, down)
        _deliver(far, up)
        _deliver(near, down)
        if 0 in readable:
            chunk = os.read(0, 65536)
            if not chunk:
                return
            # Packets that were sent before the request meet the weather of then.
            _move(near, up, _ALL_PACKETS)
            _move(far, down, _ALL_PACKETS)
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                os.write(1, _obey(line, [up, down]))


if __name__ == "__main__":
    main()
