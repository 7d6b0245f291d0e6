"""The kernel's state of a TCP connection (tcp(7), TCP_INFO)."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

# Linux, linux/tcp.h, struct tcp_info: eight bytes, then numbers; times are in microseconds. rcv_ooopack, which follows
# the numbers that are skipped, exists from Linux 5.4 on.
_LAYOUT = struct.Struct("=2xB5x24I120xI")
_RETRANSMITS, _UNACKED, _RTT, _RTTVAR, _TOTAL_RETRANS, _RCV_OOOPACK = 0, 5, 16, 17, 24, 25


@dataclass(frozen=True)
class TcpInfo:
    """A part of struct tcp_info.

    Attributes:
        round_trip_s: The peer's longest likely response time, in seconds (RFC 6298).
        unacknowledged: Whether the peer has not yet acknowledged data that was retransmitted.
        lost_packets: Whether packets have been lost since the connection was made: ours, which were retransmitted, or
            the peer's, after which others arrived out of order.
    """

    round_trip_s: float
    unacknowledged: bool
    lost_packets: bool


def read(sock: socket.socket) -> TcpInfo:
    """Read the kernel's state; for a closed socket all values are zero."""
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAYOUT.size)
    except OSError:
        return TcpInfo(0.0, unacknowledged=False, lost_packets=False)
    info = _LAYOUT.unpack(told.ljust(_LAYOUT.size, b"\0"))
    return TcpInfo(
        (info[_RTT] + 4 * info[_RTTVAR]) / 1e6,
        info[_UNACKED] > 0 and info[_RETRANSMITS] > 0,
        info[_TOTAL_RETRANS] + info[_RCV_OOOPACK] > 0,
    )
