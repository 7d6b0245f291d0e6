"""REMOTE_HOST's addresses, in the order in which they are tried."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from typing import Any

from helpers.protocol.errors import RemoteUnresolvedError

DEMOTED_S = 600.0
"""Seconds for which an address that failed to connect while another one succeeded is tried last: ten minutes, as
RFC 6555 section 4.2 caches the outcome."""

Address = tuple[int, tuple[Any, ...]]
"""A family and an address for connect(2); the numeric address comes first."""


class Addresses:
    """The addresses of one host and port; thread-safe, as all connecting threads share it.

    Args:
        host: REMOTE_HOST.
        port: REMOTE_PORT.
        clock: Seconds, monotonic.
    """

    def __init__(self, host: str, port: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._host, self._port, self._clock = host, port, clock
        self._last: list[str] = []
        self._demoted: dict[str, float] = {}

    def resolve(self) -> list[Address]:
        """Look the host up.

        Returns:
            At least one address. The families alternate (RFC 8305 section 4), each in the system's order (RFC 6724);
            addresses that recently failed to connect come last.

        Raises:
            RemoteUnresolvedError: The host has no address.
        """
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            msg = f"the remote host {self._host} has no address; check REMOTE_HOST and the gateway's DNS"
            raise RemoteUnresolvedError(msg) from exc
        unique = {str(address[0]): (int(family), address) for family, _, _, _, address in found}
        ordered = sorted(_by_turns(unique.values()), key=lambda each: self._is_demoted(numeric(each)))
        self._last = [numeric(each) for each in ordered]
        return ordered

    def starting_with(self, address: str) -> list[str]:
        """List the numeric addresses of the last lookup, with the address in use first."""
        return [address, *(other for other in self._last if other != address)]

    def connected(self, address: str, failed: Iterable[str]) -> None:
        """Record which address connected, and which ones failed before it."""
        now = self._clock()
        self._demoted = {name: end for name, end in self._demoted.items() if end > now and name != address}
        self._demoted.update((other, now + DEMOTED_S) for other in failed)

    def _is_demoted(self, address: str) -> bool:
        return self._demoted.get(address, 0.0) > self._clock()


def numeric(address: Address) -> str:
    """Format an address without its port."""
    return str(address[1][0])


def _by_turns(addresses: Iterable[Address]) -> list[Address]:
    """Alternate the families, beginning with the first one, and keep the order within each."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    return [each for each in chain.from_iterable(zip_longest(*families.values())) if each is not None]
