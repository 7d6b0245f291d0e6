"""One direction of the emulated WAN: what is lost, what waits how long, and what was counted.

Pure: no clock, no socket. The time is an argument, so that tests need no waiting and no tolerance.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TCP = "tcp"
UDP = "udp"
OTHER = "other"

# IANA protocol numbers.
_PROTOCOLS = {6: TCP, 17: UDP}

# What a home router queues before it drops, in seconds of its own rate.
_MAX_QUEUE_S = 0.5


@dataclass(frozen=True)
class Conditions:
    """The weather on the WAN.

    Attributes:
        rtt_ms: Round-trip time in milliseconds; each direction holds a packet for half of it.
        loss: Probability that a packet is lost, 0-1, in each direction.
        rate_kb_s: Bottleneck in kilobytes (1000 bytes) a second and direction; None means no bottleneck.
        forgotten_ports: TCP ports of the near side whose connections a NAT has forgotten: their packets vanish.
        blackout: Nothing passes, and what was under way is lost.
        udp_blocked: A firewall drops UDP both ways.
    """

    rtt_ms: float = 0.0
    loss: float = 0.0
    rate_kb_s: float | None = None
    forgotten_ports: tuple[int, ...] = ()
    blackout: bool = False
    udp_blocked: bool = False


@dataclass(frozen=True)
class Header:
    """What the emulator reads of a packet.

    Attributes:
        protocol: ``tcp``, ``udp`` or ``other``.
        source_port: Source port, 0 where there is none.
        destination_port: Destination port, 0 where there is none.
        multicast: The kernel's own IPv6 chatter (router solicitation, MLD), which is no one's traffic.
        has_data: Whether a TCP packet carries more than its header.
    """

    protocol: str
    source_port: int
    destination_port: int
    multicast: bool = False
    has_data: bool = False


def read_header(packet: bytes) -> Header:
    """Read protocol and ports of an IPv4 or IPv6 packet without extension headers."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        number, start, multicast = packet[9], (packet[0] & 15) * 4, False
    elif version == 6 and len(packet) >= 40:
        number, start, multicast = packet[6], 40, packet[24] == 0xFF
    else:
        return Header(OTHER, 0, 0)
    protocol = _PROTOCOLS.get(number, OTHER)
    if protocol == OTHER or len(packet) < start + 4:
        return Header(OTHER, 0, 0, multicast)
    source = int.from_bytes(packet[start : start + 2], "big")
    destination = int.from_bytes(packet[start + 2 : start + 4], "big")
    has_data = protocol == TCP and len(packet) > start + 12 and len(packet) > start + (packet[start + 12] >> 4) * 4
    return Header(protocol, source, destination, multicast, has_data)


class Turns:
    """Counts how often the two sides took turns to say something: two turns are a round trip.

    Attributes:
        by_port: Turns by the remote's TCP port, over all connections to it.
    """

    def __init__(self) -> None:
        """Nobody has said anything."""
        self.by_port: Counter[int] = Counter()
        self._last: dict[int, str] = {}

    def note(self, port: int, direction: str) -> None:
        """Note a packet with data."""
        if self._last.get(port) != direction:
            self._last[port] = direction
            self.by_port[port] += 1


class Link:
    """One direction: a seeded loss, a constant delay, a bottleneck, and counters.

    Args:
        conditions: The weather at the start; assign ``conditions`` to change it.
        seed: The n-th packet offered in a run is lost or not by the seed and ``direction`` alone.
        direction: ``up`` (towards the remote) or ``down``: the two lose independently of each other, and the
            counters name the remote's port, which is the destination upwards and the source downwards.
        turns: Counts both directions' turns.
    """

    def __init__(self, conditions: Conditions, seed: int, direction: str, turns: Turns | None = None) -> None:
        """Start with nothing under way."""
        self.turns = turns or Turns()
        self.conditions = conditions
        self.packets: Counter[tuple[str, int]] = Counter()
        self.bytes = 0
        self.lost = 0
        self._direction = direction
        # Not cryptography: the point is that it can be repeated.
        self._chance = random.Random(f"{seed}:{direction}")  # noqa: S311
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._free_at_s = 0.0
        self._last_due_s = 0.0

    def offer(self, packet: bytes, now_s: float) -> bool:
        """Take a packet in at a time in seconds; True unless it is lost."""
        header = read_header(packet)
        if header.multicast:
            return False
        port = header.destination_port if self._direction == "up" else header.source_port
        self.packets[header.protocol, port] += 1
        self.bytes += len(packet)
        if header.has_data:
            self.turns.note(port, self._direction)
        weather = self.conditions
        # Drawn for every packet, so that a blackout does not shift what happens to those after it.
        unlucky = self._chance.random() < weather.loss
        near_port = header.source_port if self._direction == "up" else header.destination_port
        is_forgotten = header.protocol == TCP and near_port in weather.forgotten_ports
        blocked = weather.blackout or is_forgotten or (weather.udp_blocked and header.protocol == UDP)
        leaves_at_s = self._through_bottleneck(len(packet), now_s)
        if unlucky or blocked or leaves_at_s is None:
            self.lost += 1
            return False
        # A shorter delay set at run time must not let a packet overtake: TCP would call that loss.
        self._last_due_s = max(self._last_due_s, leaves_at_s + weather.rtt_ms / 2000)
        self._under_way.append((self._last_due_s, packet))
        return True

    def _through_bottleneck(self, length: int, now_s: float) -> float | None:
        """When the packet is through the bottleneck, or None when the queue is full."""
        rate_kb_s = self.conditions.rate_kb_s
        if rate_kb_s is None:
            return now_s
        start_s = max(now_s, self._free_at_s)
        if start_s - now_s > _MAX_QUEUE_S:
            return None
        self._free_at_s = start_s + length / (rate_kb_s * 1000)
        return self._free_at_s

    def due(self, now_s: float) -> Iterator[bytes]:
        """Hand out the packets whose time has come."""
        while self._under_way and self._under_way[0][0] <= now_s:
            yield self._under_way.popleft()[1]

    def next_due_s(self) -> float | None:
        """Tell when the next packet is due, None when nothing is under way."""
        return self._under_way[0][0] if self._under_way else None

    def clear(self) -> None:
        """Lose all that is under way."""
        self.lost += len(self._under_way)
        self._under_way.clear()


def lost_pattern(loss: float, seed: int, direction: str, count: int) -> list[bool]:
    """Tell which of the first ``count`` packets offered in a direction are lost (True)."""
    link = Link(Conditions(loss=loss), seed, direction)
    return [not link.offer(b"", 0.0) for _ in range(count)]
