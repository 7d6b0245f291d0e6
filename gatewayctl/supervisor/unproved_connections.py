"""Limits for connections that the remote has not accepted yet, if the gateway accepts any key.

sshd counts a source's connections until they are authenticated (sshd_config(5), PerSourceMaxStartups). If any key is
accepted, that proves nothing. This module counts a connection until it has a mosh-client, or an ssh to the remote.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gatewayctl.runtime import processes
from helpers.protocol.client_source import is_in, parse_address, source_of_address

MAX_FOR_SOURCE = 50
"""Most connections of one address, or one /64 of IPv6: as many as PerSourceMaxStartups allows (60-abuse.conf)."""

MAX_CLIENTS = 250
"""Most connections of all addresses: as many as MaxStartups accepts without dropping any. Each takes two processes."""

LOOK_S = 1.0
"""Seconds between checks which connections the remote has accepted; each takes some 0.3 ms."""

_UNPROVED = "connections that the remote has not accepted"
_PROVED = {"mosh-client", "ssh"}


class UnprovedConnections:
    """Counts the connections that logged in with any key, and that the remote has not accepted.

    Args:
        sshd: Returns the pid of the listening sshd.
        trusted_proxies: GATEWAY_TRUSTED_PROXIES: the proxies' networks, separated by commas; they are not limited.
        clock: Seconds, monotonic.

    Attributes:
        trusted_proxies: The same; a reload may change it.
    """

    def __init__(
        self, sshd: Callable[[], int], trusted_proxies: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sshd, self.trusted_proxies, self._clock = sshd, trusted_proxies, clock
        self._looked_s = -LOOK_S
        self._sources: dict[int, str | None] = {}
        self._proved: set[int] = set()

    def refusal_reason(self, connection: int, address: str | None) -> str | None:
        """Return why a connection may not go on; None if it may.

        Args:
            connection: The pid of sshd's process for the connection.
            address: The client's address; None if it is unknown.
        """
        here = set(processes.children(self._sshd()))
        self._sources = {pid: source for pid, source in self._sources.items() if pid in here}
        source = self._sources[connection] = self._source(address)
        if len(self._sources) <= MAX_FOR_SOURCE:
            return None
        if self._clock() - self._looked_s >= LOOK_S:
            self._looked_s, self._proved = self._clock(), {pid for pid in self._sources if _is_proved(pid)}
        unproved = [each for pid, each in self._sources.items() if pid not in self._proved or pid == connection]
        if source is not None and unproved.count(source) > MAX_FOR_SOURCE:
            return f"{source} has more than {MAX_FOR_SOURCE} {_UNPROVED}"
        return f"there are more than {MAX_CLIENTS} {_UNPROVED}" if len(unproved) > MAX_CLIENTS else None

    def _source(self, address: str | None) -> str | None:
        """Return the source of a connection; None if it is a proxy, or unknown."""
        ip = None if address is None else parse_address(address)
        return None if ip is None or is_in(ip, self.trusted_proxies) else source_of_address(ip)


def _is_proved(connection: int) -> bool:
    for pid in processes.descendants(connection):
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").rstrip("\n") in _PROVED:
                return True
    return False
