"""The clients that log in: their addresses, their keys, and whether the remote has accepted them before."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from helpers.broker.known_clients import KnownClients
from helpers.broker.peer_credentials import Peer, session_id
from helpers.broker.privileged_client import PrivilegedClient
from helpers.protocol.client_source import is_in, parse_address
from helpers.ssh.known_hosts import fingerprint

_ENDPOINT = re.compile(r"[0-9A-Fa-f:.%a-z]{2,64} [0-9]{1,5}", re.ASCII)


@dataclass(frozen=True)
class Client:
    """One login of a client's.

    Attributes:
        sid: Names the connection in the log, see `helpers.broker.peer_credentials.session_id`.
        endpoint: ``address:port``; None if it is unknown.
        address: The address; None if it is unknown.
        own_address: The address, or None if it is a proxy's and so does not identify the client.
        key: The fingerprint of the client's key; None for another authentication method.
    """

    sid: str | None
    endpoint: str | None = None
    address: str | None = None
    own_address: str | None = None
    key: str | None = None

    @property
    def process(self) -> int | None:
        """The pid of sshd's process for the connection."""
        return None if self.sid is None else int(self.sid.partition("-")[0])


class Clients:
    """Reads the client's details from requests, and remembers which clients the remote has accepted.

    Args:
        supervisor: The process that started sshd.
        trusted_proxies: GATEWAY_TRUSTED_PROXIES: the proxies' networks, separated by commas.
        privileged: Tells a connection's client, which sshd does not pass on before OpenSSH 9.4.
    """

    def __init__(self, supervisor: int, trusted_proxies: str, privileged: PrivilegedClient) -> None:
        self._supervisor, self._privileged = supervisor, privileged
        self._trusted_proxies = trusted_proxies
        self._known = KnownClients()

    def read(self, peer: Peer, request: Mapping[str, Any]) -> Client:
        """Read a request.

        Args:
            peer: The helper that sent the request.
            request: ``connection``, the value of SSH_CONNECTION; ``key``, the first line of SSH_USER_AUTH's file.
        """
        client = Client(session_id(peer.pid, self._supervisor), key=_key_fingerprint(str(request.get("key", ""))))
        return self._at(client, _endpoint(str(request.get("connection", ""))))

    async def offering(self, peer: Peer, connection: str) -> Client:
        """Read the details of a client that offers a key.

        Args:
            peer: The key command.
            connection: sshd's ``%C`` (sshd_config(5), TOKENS), or "".
        """
        client, endpoint = Client(session_id(peer.pid, self._supervisor)), _endpoint(connection)
        if endpoint is None and client.process is not None:
            endpoint = (await self._privileged.connection(client.process)).client
        return self._at(client, endpoint)

    def _at(self, client: Client, endpoint: str | None) -> Client:
        address = None if endpoint is None else endpoint.rpartition(":")[0].strip("[]")
        own_address = None if address is None or self._is_proxy(address) else address
        return replace(client, endpoint=endpoint, address=address, own_address=own_address)

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
