"""Where any key passes: how many clients of one address may be here before the remote has let them in.

sshd counts a source's connections until they are authenticated (sshd_config(5), PerSourceMaxStartups), which is no step
where any key is accepted. This goes on counting until the connection has a mosh-client, or an ssh to the remote.
"""

from __future__ import annotations

import ipaddress
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gatewayctl.runtime import processes

MAX_FOR_SOURCE = 50
"""Connections of one address, or one /64 of IPv6: as many as PerSourceMaxStartups lets one have (60-abuse.conf)."""

MAX_CLIENTS = 250
"""Connections of all addresses: as many as MaxStartups leaves undisturbed. Each takes two processes."""

IPV6, IPV6_PREFIX = 6, 64
"""Bits by which IPv6 addresses are one source, as for sshd (PerSourceNetBlockSize)."""

LOOK_S = 1.0
"""Seconds between looks at which connections the remote has let in, each of which takes some 0.3 ms."""

_UNPROVED = "connections that the remote has not let in"
_PROVED = {"mosh-client", "ssh"}
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class UnprovedConnections:
    """Counts the connections that asked to come in by any key, and that the remote has not let in.

    Args:
        sshd: Tells the process id of the sshd that listens.
        trusted_proxies: GATEWAY_TRUSTED_PROXIES: networks with commas between, from where everyone may come.
        clock: Seconds, monotonic.

    Attributes:
        trusted_proxies: The same, which a reload may change.
    """

    def __init__(
        self, sshd: Callable[[], int], trusted_proxies: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sshd, self.trusted_proxies, self._clock = sshd, trusted_proxies, clock
        self._looked_s = -LOOK_S
        self._sources: dict[int, str | None] = {}
        self._proved: set[int] = set()

    def why_not(self, connection: int, address: str | None) -> str | None:
        """Tell why a connection may not go on; None where it may.

        Args:
            connection: The process that sshd has for it.
            address: The client's address; None where sshd does not tell (before OpenSSH 9.4).
        """
        here = set(processes.children(self._sshd()))
        self._sources = {pid: source for pid, source in self._sources.items() if pid in here}
        source = self._sources[connection] = self._source(connection, address)
        if len(self._sources) <= MAX_FOR_SOURCE:
            return None
        if self._clock() - self._looked_s >= LOOK_S:
            self._looked_s, self._proved = self._clock(), {pid for pid in self._sources if _is_proved(pid)}
        unproved = [each for pid, each in self._sources.items() if pid not in self._proved or pid == connection]
        if source is not None and unproved.count(source) > MAX_FOR_SOURCE:
            return f"{source} has more than {MAX_FOR_SOURCE} {_UNPROVED}"
        return f"there are more than {MAX_CLIENTS} {_UNPROVED}" if len(unproved) > MAX_CLIENTS else None

    def _source(self, pid: int, address: str | None) -> str | None:
        """Name the source of a connection; None where it is a proxy, or cannot be seen."""
        ip = _peer(pid) if address is None else ipaddress.ip_address(address.partition("%")[0])
        if ip is None or any(ip in ipaddress.ip_network(text) for text in self.trusted_proxies.split(",") if text):
            return None
        return str(ipaddress.IPv6Network((int(ip), IPV6_PREFIX), strict=False)) if ip.version == IPV6 else str(ip)


def _is_proved(connection: int) -> bool:
    for pid in processes.descendants(connection):
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").rstrip("\n") in _PROVED:
                return True
    return False


def _peer(pid: int) -> _Address | None:
    """Find the other end of a process's TCP connection; None where the kernel does not let us see its sockets."""
    inodes = set()
    with suppress(OSError):
        inodes = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if f"socket:[{fields[9]}]" in inodes:
                    return _address(fields[2].partition(":")[0])
    return None


def _address(written: str) -> _Address:
    """Read an address as the kernel writes it: every four bytes are a number of the machine's (proc(5), net/tcp)."""
    words = struct.unpack(f"={len(written) // 8}I", bytes.fromhex(written))
    ip = ipaddress.ip_address(struct.pack(f">{len(words)}I", *words))
    return getattr(ip, "ipv4_mapped", None) or ip
