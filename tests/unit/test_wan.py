"""One direction of the emulated WAN, with the time as an argument."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.link import OTHER, TCP, UDP, Conditions, Header, Link, lost_pattern, read_header

_IPV4_TCP = bytes([0x45, *[0] * 8, 6, *[0] * 10, *(40000).to_bytes(2, "big"), 0, 22])
_IPV4_UDP = bytes([0x45, *[0] * 8, 17, *[0] * 10, *(40000).to_bytes(2, "big"), *(60001).to_bytes(2, "big")])
_IPV6_UDP = bytes([0x60, *[0] * 5, 17, 0, *[0x20] * 32, 0, 53, 0, 54])
_IPV6_MULTICAST = bytes([0x60, *[0] * 5, 58, 255, *[0xFE] * 16, *[0xFF] * 16, 133, 0, 0, 0])


def _drain(link: Link, now_s: float) -> list[bytes]:
    return list(link.due(now_s))


def test_packet_waits_half_the_round_trip() -> None:
    """Each direction holds a packet for half the round trip, to the instant."""
    link = Link(Conditions(rtt_ms=100), 1, "up")
    link.offer(_IPV4_TCP, 10.0)

    assert link.next_due_s() == pytest.approx(10.05)
    assert _drain(link, 10.049) == []
    assert _drain(link, 10.051) == [_IPV4_TCP]
    assert link.next_due_s() is None


def test_loss_repeats_with_the_seed_and_differs_by_direction() -> None:
    """The same seed loses the same packets; the two directions do not lose alike."""
    up = lost_pattern(0.29, 1, "up", 1000)

    assert up == lost_pattern(0.29, 1, "up", 1000)
    assert up != lost_pattern(0.29, 2, "up", 1000)
    assert up != lost_pattern(0.29, 1, "down", 1000)
    assert 240 < sum(up) < 340


@pytest.mark.parametrize(("loss", "lost"), [(0.0, 0), (1.0, 100)])
def test_extremes_of_loss(loss: float, lost: int) -> None:
    """No loss loses nothing, full loss loses everything."""
    assert sum(lost_pattern(loss, 1, "up", 100)) == lost


def test_blackout_does_not_shift_the_pattern() -> None:
    """What is lost after a blackout does not depend on it."""
    expected = lost_pattern(0.5, 3, "up", 60)
    link = Link(Conditions(loss=0.5, blackout=True), 3, "up")
    dark = [link.offer(b"", 0.0) for _ in range(20)]
    link.conditions = dataclasses.replace(link.conditions, blackout=False)

    assert dark == [False] * 20
    assert [not link.offer(b"", 0.0) for _ in range(40)] == expected[20:]


def test_clear_loses_what_is_under_way() -> None:
    """A cut cable delivers nothing that was in it."""
    link = Link(Conditions(rtt_ms=100), 1, "up")
    link.offer(_IPV4_TCP, 0.0)
    link.clear()

    assert _drain(link, 1.0) == []
    assert link.lost == 1


def test_bottleneck_spaces_packets_and_drops_a_long_queue() -> None:
    """1000 bytes at 10 kB/s take a tenth of a second each; half a second of queue is all there is."""
    link = Link(Conditions(rate_kb_s=10), 1, "up")
    taken = [link.offer(bytes(1000), 0.0) for _ in range(8)]

    assert taken == [True] * 6 + [False] * 2
    assert len(_drain(link, 0.301)) == 3
    assert len(_drain(link, 0.601)) == 3


def test_shorter_delay_does_not_reorder() -> None:
    """A packet sent after the round trip shrank arrives no earlier than those before it."""
    link = Link(Conditions(rtt_ms=1000), 1, "up")
    link.offer(_IPV4_TCP, 0.0)
    link.conditions = Conditions(rtt_ms=0)
    link.offer(_IPV4_UDP, 0.1)

    assert _drain(link, 0.4) == []
    assert _drain(link, 0.5) == [_IPV4_TCP, _IPV4_UDP]


def test_udp_blocked_spares_tcp() -> None:
    """A firewall against UDP lets TCP pass."""
    link = Link(Conditions(udp_blocked=True), 1, "up")

    assert link.offer(_IPV4_TCP, 0.0)
    assert not link.offer(_IPV4_UDP, 0.0)
    assert link.lost == 1


def test_counters_name_the_remotes_port() -> None:
    """Upwards the remote's port is the destination, downwards the source; the kernel's chatter is no traffic."""
    up, down = Link(Conditions(), 1, "up"), Link(Conditions(), 1, "down")
    for link in (up, down):
        link.offer(_IPV4_TCP, 0.0)
        assert not link.offer(_IPV6_MULTICAST, 0.0)

    assert up.packets == {(TCP, 22): 1}
    assert down.packets == {(TCP, 40000): 1}
    assert up.bytes == len(_IPV4_TCP)
    assert up.lost == 0


@pytest.mark.parametrize(
    ("packet", "header"),
    [
        (_IPV4_TCP, Header(TCP, 40000, 22)),
        (_IPV4_UDP, Header(UDP, 40000, 60001)),
        (_IPV6_UDP, Header(UDP, 53, 54)),
        (_IPV6_MULTICAST, Header(OTHER, 0, 0, multicast=True)),
        (_IPV4_TCP[:22], Header(OTHER, 0, 0)),
        (b"", Header(OTHER, 0, 0)),
    ],
)
def test_read_header(packet: bytes, header: Header) -> None:
    """Protocol and ports of both IP versions; a cut or foreign packet has none."""
    assert read_header(packet) == header


@given(st.binary(max_size=64))
def test_read_header_takes_anything(packet: bytes) -> None:
    """No packet makes it raise."""
    assert read_header(packet).protocol in {TCP, UDP, OTHER}
