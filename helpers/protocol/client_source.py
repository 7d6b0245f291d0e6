"""The source of a client: the same for sshd (60-abuse.conf, PerSourceNetBlockSize), the broker and the supervisor."""

from __future__ import annotations

import ipaddress

IPV6_PREFIX = 64
"""Length of the IPv6 networks that count as one source: one customer's, in which a stranger has 2**64 addresses."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_address(text: str) -> Address:
    """Parse an address; a zone is left out.

    Raises:
        ValueError: It is not an address.
    """
    return ipaddress.ip_address(text.partition("%")[0])


def source_of_address(address: Address) -> str:
    """Return the source of an address: an IPv4 address itself, or the network of an IPv6 address."""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.IPv6Network((int(address), IPV6_PREFIX), strict=False))


def is_in(address: Address, networks: str) -> bool:
    """Return whether an address is in one of the networks, which are separated by commas."""
    return any(address in ipaddress.ip_network(text) for text in networks.split(",") if text)
