"""The clients that log in: their addresses, their keys, and whether the remote has accepted them before."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from helpers.broker.known_clients import KnownClients
from helpers.broker.peer_credentials import Peer, session_id
from helpers.protocol.client_source import is_in, parse_address
from helpers.ssh.known_hosts import fingerprint

_ENDPOINT = re.compile(r"[0-9A-Fa-f:.%a-z]{2,64} [0-9]{1,5}", re.ASCII)


@dataclass(frozen=True)
class Client:
    """One login of a client's.

    Attributes:
        sid: Names the connection in the log, see `helpers.broker.peer_credentials.session_id`.
        endpoint: ``address:port``; None if sshd does not pass it on.
        address: The address; None if sshd does not pass it on.
        own_address: The address, or None if it is a proxy's and so does not identify the client.
        key: The fingerprint of the client's key; None for another authentication method.
    """

    sid: str | None
    endpoint: str | None
    address: str | None
    own_address: str | None
    key: str | None

    @property
    def process(self) -> int | None:
        """The pid of sshd's process for the connection."""
        return None if self.sid is None else int(self.sid.partition("-")[0])


class Clients:
    """Reads the client's details from requests, and remembers which clients the remote has accepted.

    Args:
        supervisor: The process that started sshd.
        trusted_proxies: GATEWAY_TRUSTED_PROXIES: the proxies' networks, separated by commas.
    """

    def __init__(self, supervisor: int, trusted_proxies: str) -> None:
        self._supervisor = supervisor
        self._trusted_proxies = trusted_proxies
        self._known = KnownClients()

    def read(self, peer: Peer, request: Mapping[str, Any]) -> Client:
        """Read a request.

        Args:
            peer: The helper that sent the request.
            request: ``connection``, the value of SSH_CONNECTION; ``key``, the first line of SSH_USER_AUTH's file.
        """
        endpoint = _endpoint(str(request.get("connection", "")))
        address = None if endpoint is None else endpoint.rpartition(":")[0].strip("[]")
        return Client(
            session_id(peer.pid, self._supervisor),
            endpoint,
            address,
            None if address is None or self._is_proxy(address) else address,
            _key_fingerprint(str(request.get("key", ""))),
        )

    def _is_proxy(self, address: str) -> bool:
        try:
            return is_in(parse_address(address), self._trusted_proxies)
        except ValueError:
            return True  # without an address the client is not identified

    def note_login(self, user: str, client: Client, *, by_key: bool = False) -> None:
        """Record that the remote has accepted a user's login.

        Args:
            user: The user's name.
            client: The client.
            by_key: Whether the remote accepted the client's own key, so that the key is recorded too.
        """
        self._known.note(user, client.own_address, client.key if by_key else None)

    def knows_address(self, user: str, client: Client) -> bool:
        """Whether the remote has accepted the user from the client's address within a day."""
        return self._known.knows(user, client.own_address)

    def knows_key(self, user: str, client: Client) -> bool:
        """Whether the remote has accepted the user with the client's key within a day."""
        return self._known.knows(user, client.key)


def _endpoint(connection: str) -> str | None:
    """Format the client's end of SSH_CONNECTION as ``address:port``; None if it has none."""
    client = " ".join(connection.split(" ")[:2])
    if not _ENDPOINT.fullmatch(client):
        return None
    address, port = client.split(" ")
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _key_fingerprint(user_auth: str) -> str | None:
    """Return the fingerprint of the accepted key from SSH_USER_AUTH's first line; None for another method."""
    words = user_auth.split(" ")
    try:
        return fingerprint(base64.b64decode(words[2], validate=True)) if words[0] == "publickey" else None
    except (IndexError, ValueError):
        return None
