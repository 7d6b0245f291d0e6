"""The WAN of the lab delays, loses, counts and goes dark as it says, with the kernel's own sockets on both sides."""

from __future__ import annotations

import socket
import struct
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from lab.link import lost_pattern
from lab.wan import FAR_IPV4, FAR_IPV6

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.bench import Lab

_PORT = 7  # echo, RFC 862: free in a namespace of our own


def _far_socket(lab: Lab, kind: socket.SocketKind) -> socket.socket:
    """Return a socket on the remote's side that is bound to both address families."""
    with lab.remote.room.network():
        sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.settimeout(10)
    sock.bind(("::", _PORT))
    return sock


def _send_numbers(lab: Lab, count: int) -> set[int]:
    """Send numbered datagrams to the remote, and return the numbers that arrive before a last one, sent in peace."""
    with lab.near.network():
        near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    arrived = set()
    with closing(near), closing(_far_socket(lab, socket.SOCK_DGRAM)) as far:
        for number in range(count):
            near.sendto(struct.pack("!i", number), (FAR_IPV4, _PORT))
        lab.wan.change(loss=0, blackout=False)
        near.sendto(struct.pack("!i", -1), (FAR_IPV4, _PORT))
        while (number := struct.unpack("!i", far.recv(4))[0]) != -1:
            arrived.add(number)
    return arrived


def test_loss_is_decided_by_the_seed(make_lab: Callable[..., Lab]) -> None:
    """Exactly those of 200 datagrams arrive that the seed lets through."""
    lab = make_lab(rtt_ms=2, loss=0.29, seed=7)
    lost = lost_pattern(0.29, 7, "up", 200)

    arrived = _send_numbers(lab, 200)

    assert arrived == {number for number, is_lost in enumerate(lost) if not is_lost}
    assert lab.wan.traffic().up.lost == sum(lost)


def test_nothing_passes_in_a_blackout_and_all_after_it(make_lab: Callable[..., Lab]) -> None:
    """What is sent in the dark is lost, what is sent after it arrives."""
    lab = make_lab(rtt_ms=2)

    lab.wan.change(blackout=True)
    in_the_dark = _send_numbers(lab, 20)  # which ends the blackout before its last datagram
    in_the_light = _send_numbers(lab, 20)

    assert in_the_dark == set()
    assert in_the_light == set(range(20))


@pytest.mark.parametrize("address", [FAR_IPV4, FAR_IPV6])
def test_kernel_measures_at_least_the_round_trip(make_lab: Callable[..., Lab], address: str) -> None:
    """TCP's own estimate of the round trip, from the handshake, is no less than what the WAN holds back."""
    lab = make_lab(rtt_ms=100)
    with closing(_far_socket(lab, socket.SOCK_STREAM)) as far:
        far.listen()
        with lab.near.connect(address, _PORT) as near:
            # struct tcp_info, linux/tcp.h: 8 one-byte fields, then 32-bit ones; tcpi_rtt is the 16th, microseconds.
            info = struct.unpack("8B24I", near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104))

    assert info[8 + 15] >= 100_000


def test_megabyte_arrives_whole(make_lab: Callable[..., Lab]) -> None:
    """A megabyte crosses a lossy WAN unchanged, and is counted on its port and no other."""
    lab = make_lab(rtt_ms=20, loss=0.01)
    payload = bytes(range(256)) * 4000
    with closing(_far_socket(lab, socket.SOCK_STREAM)) as far:
        far.listen()
        with lab.near.connect(FAR_IPV4, _PORT) as near:
            accepted, _ = far.accept()
            near.settimeout(10)
            received = bytearray()
            with accepted:
                accepted.settimeout(10)
                view = memoryview(payload)
                while view:
                    view = view[near.send(view[:65536]) :]
                    while len(received) < len(payload) - len(view):
                        received += accepted.recv(65536)

    up = lab.wan.traffic().up
    assert received == payload
    assert up.packets("tcp", _PORT) == up.packets("tcp") >= len(payload) // 1500
    assert up.packets("udp") == 0
    assert up.bytes > len(payload)


def test_blocked_udp_leaves_tcp_alone(make_lab: Callable[..., Lab]) -> None:
    """A firewall against UDP loses every datagram and lets a connection be made."""
    lab = make_lab(rtt_ms=2)
    with (
        lab.wan.weather(udp_blocked=True),
        closing(_far_socket(lab, socket.SOCK_STREAM)) as far,
        lab.near.network(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
    ):
        far.listen()
        near.sendto(b"lost", (FAR_IPV4, _PORT))
        lab.near.connect(FAR_IPV4, _PORT).close()
        up = lab.wan.traffic().up

    assert up.packets("udp", _PORT) == 1
    assert up.lost == 1
