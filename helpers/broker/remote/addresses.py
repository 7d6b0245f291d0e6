"""REMOTE_HOST's addresses, in the order in which they are tried."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from typing import Any

from helpers.protocol.errors import RemoteUnresolvedError

DEMOTED_S = 600.0
"""Seconds for which an address that did not connect, where another one did, is tried after the others: ten minutes, as
RFC 6555 section 4.2 remembers what worked."""

Address = tuple[int, tuple[Any, ...]]
"""A family and an address, as connect(2) takes them; the numeric address comes first."""


class Addresses:
    """The addresses of one host and port. Threads that connect share it.

    Args:
        host: REMOTE_HOST.
        port: REMOTE_PORT.
        clock: Seconds, monotonic.
    """

    def __init__(self, host: str, port: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Look nothing up yet."""
        self._host, self._port, self._clock = host, port, clock
        self._last: list[str] = []
        self._demoted: dict[str, float] = {}

    def resolve(self) -> list[Address]:
        """Look the host up.

        Returns:
            At least one address: the families by turns (RFC 8305 section 4), in the system's order (RFC 6724), and
            behind all others those that did not connect lately.

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

    def beside(self, address: str) -> list[str]:
        """List the numeric addresses that were found last, behind one that is in use."""
        return [address, *(other for other in self._last if other != address)]

    def connected(self, address: str, failed: Iterable[str]) -> None:
        """Note which address connected, and which others had been tried before it."""
        now = self._clock()
        self._demoted = {name: end for name, end in self._demoted.items() if end > now and name != address}
        self._demoted.update((other, now + DEMOTED_S) for other in failed)

    def _is_demoted(self, address: str) -> bool:
        return self._demoted.get(address, 0.0) > self._clock()


def numeric(address: Address) -> str:
    """Write an address without its port."""
    return str(address[1][0])


def _by_turns(addresses: Iterable[Address]) -> list[Address]:
    """Put the families by turns, the first one first, and keep the order of each."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    return [each for each in chain.from_iterable(zip_longest(*families.values())) if each is not None]
