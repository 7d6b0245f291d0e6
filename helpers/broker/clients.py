"""The clients that log in: from where, by which key, and whether the remote has let them in before."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from helpers.broker.known_clients import KnownClients
from helpers.broker.peer_credentials import Peer, session_id
from helpers.ssh.known_hosts import fingerprint

_ENDPOINT = re.compile(r"[0-9A-Fa-f:.%a-z]{2,64} [0-9]{1,5}", re.ASCII)


@dataclass(frozen=True)
class Client:
    """One login of a client's.

    Attributes:
        sid: Names the connection in the log, see `helpers.broker.peer_credentials.session_id`.
        endpoint: ``address:port``; None where sshd does not tell.
        address: The address; None where sshd does not tell.
        own_address: The same; None where it is a proxy's, and so no sign of who is behind it.
        key: The fingerprint of the key that it came with; None for another way in.
    """

    sid: str | None
    endpoint: str | None
    address: str | None
    own_address: str | None
    key: str | None

    @property
    def process(self) -> int | None:
        """The process that sshd has for the connection."""
        return None if self.sid is None else int(self.sid.partition("-")[0])


class Clients:
    """Reads what requests say of clients, and keeps in mind which of them the remote has let in.

    Args:
        supervisor: The process that started sshd.
        trusted_proxies: GATEWAY_TRUSTED_PROXIES: networks with commas between, from where everyone may come.
    """

    def __init__(self, supervisor: int, trusted_proxies: str) -> None:
        self._supervisor = supervisor
        self._proxies = [ipaddress.ip_network(text) for text in trusted_proxies.split(",") if text]
        self._known = KnownClients()

    def read(self, peer: Peer, request: Mapping[str, Any], key: str | None = None) -> Client:
        """Read a request.

        Args:
            peer: The helper that asks.
            request: ``connection`` as SSH_CONNECTION has it; ``key``, the first line of SSH_USER_AUTH's file.
            key: The key's fingerprint, where it is known otherwise.
        """
        endpoint = _endpoint(str(request.get("connection", "")))
        address = None if endpoint is None else endpoint.rpartition(":")[0].strip("[]")
        return Client(
            session_id(peer.pid, self._supervisor),
            endpoint,
            address,
            None if address is None or self._is_proxy(address) else address,
            key or _key_fingerprint(str(request.get("key", ""))),
        )

    def _is_proxy(self, address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return True  # no address tells nothing of who comes
        return any(ip in proxies for proxies in self._proxies)

    def note_login(self, user: str, client: Client, *, by_key: bool = False) -> None:
        """Note that the remote has let a user in.

        Args:
            user: The user's name.
            client: The client.
            by_key: Whether the remote's verdict is on the client's own key, so that the key will be known too.
        """
        self._known.note(user, client.own_address, client.key if by_key else None)

    def knows_address(self, user: str, client: Client) -> bool:
        """Whether the remote has let the user in from the client's address within a day."""
        return self._known.knows(user, client.own_address)

    def knows_key(self, user: str, client: Client) -> bool:
        """Whether the remote has let the user in by the client's key within a day."""
        return self._known.knows(user, client.key)


def _endpoint(connection: str) -> str | None:
    """Write the client's end of a connection, ``address:port``, from sshd's words; None where there is none."""
    client = " ".join(connection.split(" ")[:2])
    if not _ENDPOINT.fullmatch(client):
        return None
    address, port = client.split(" ")
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _key_fingerprint(user_auth: str) -> str | None:
    """Name the key that sshd accepted, from the first line of SSH_USER_AUTH; None for another way in."""
    words = user_auth.split(" ")
    try:
        return fingerprint(base64.b64decode(words[2], validate=True)) if words[0] == "publickey" else None
    except (IndexError, ValueError):
        return None
