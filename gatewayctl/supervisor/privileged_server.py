"""What the supervisor does for the broker because it takes root: users' homes, and the keys that sshd knows by itself.

Deciding for whom is the broker's: it asks over a socket that only it holds.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from gatewayctl.supervisor.authorized_keys_files import AuthorizedKeysFiles
from gatewayctl.supervisor.home_directories import HomeDirectories
from gatewayctl.supervisor.unproved_connections import UnprovedConnections
from helpers.broker.keys.sshd_key_cache import LONGEST_S
from helpers.protocol.errors import ProtocolError
from helpers.protocol.messages import MAX_REQUEST_BYTES, decode, encode, is_user_name

SWEEP_S = 10.0
"""Seconds between looks for homes that nobody needs."""


class PrivilegedServer:
    """Runs them, for one broker or for two of which one is about to go.

    Args:
        homes: Users' homes.
        keys: The keys that sshd knows by itself.
        clients: Counts those that the remote has not let in.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        homes: HomeDirectories,
        keys: AuthorizedKeysFiles,
        clients: UnprovedConnections,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Heed no broker yet."""
        self._homes, self._keys, self._clients, self._clock = homes, keys, clients, clock
        self._lock = threading.Lock()
        self._active: socket.socket | None = None
        self._owners: dict[int, str] = {}

    def set_active_broker(self, sock: socket.socket, trusted_proxies: str = "") -> None:
        """Write keys for one broker alone from now on, and remove what another one had written.

        Args:
            sock: Our end of its SOCK_SEQPACKET pair.
            trusted_proxies: GATEWAY_TRUSTED_PROXIES as that broker has it.
        """
        self._clients.trusted_proxies = trusted_proxies
        with self._lock:
            self._active = sock
            self._keys.clear()

    def serve(self, sock: socket.socket) -> None:
        """Run one broker's errands until it is gone.

        Args:
            sock: Our end of a SOCK_SEQPACKET pair; closed at the end.
        """
        with sock:
            swept_s = self._clock()
            while True:
                # By the clock and not by silence: with a login every few seconds there is none, and nothing would go.
                with self._lock:
                    left_s = self._keys.sweep()
                    if self._clock() - swept_s >= SWEEP_S:
                        self._homes.sweep(self._keys.uids)
                        swept_s = self._clock()
                sock.settimeout(min(SWEEP_S, left_s))
                try:
                    request = sock.recv(MAX_REQUEST_BYTES)
                    if not request:
                        break
                    sock.send(encode(self._answer(sock, request)))
                except TimeoutError:
                    continue
                except OSError:
                    break
            with self._lock:
                if self._active is sock:
                    self._keys.clear()

    def _answer(self, sock: socket.socket, request: bytes) -> dict[str, Any]:
        try:
            errand = decode(request)
            user, uid = errand["user"], errand["uid"]
            lines, seconds = errand.get("lines"), errand.get("seconds", 0.0)
            client = errand.get("client")
        except (ProtocolError, KeyError):
            return {}
        number = errand.get("number")
        trouble: str | None = "no valid errand"
        if _is_for_somebody(user, uid) and _is_for_a_file(lines, seconds) and _is_of_a_client(client):
            with self._lock:
                trouble = None if client is None else self._clients.why_not(*client)
                if trouble is None:
                    self._vacate(user, uid)
                    trouble = self._make_home(user, uid)
                if lines is not None and self._active is sock:
                    self._keys.write(user, uid, lines if trouble is None else [], seconds)
        return {"number": number, "trouble": trouble}

    def _make_home(self, user: str, uid: int) -> str | None:
        try:
            self._homes.make(uid)
        except OSError as error:
            return f"no home directory could be made ({error.strerror or error})"
        self._owners[uid] = user
        return None

    def _vacate(self, user: str, uid: int) -> None:
        """Take away what the last owner of a uid left, where it has gone to another name."""
        if (last := self._owners.get(uid, user)) != user:
            self._keys.remove(last)
            self._homes.remove(uid)


def _is_for_somebody(user: object, uid: object) -> bool:
    # As names of files the first two would be directories.
    return isinstance(user, str) and is_user_name(user) and user not in {".", ".."} and type(uid) is int


def _is_for_a_file(lines: object, seconds: Any) -> bool:  # noqa: ANN401 - whatever the broker sent
    if lines is None:
        return True
    texts = isinstance(lines, list) and all(isinstance(line, str) and "\n" not in line for line in lines)
    return texts and type(seconds) in {int, float} and seconds <= LONGEST_S


def _is_of_a_client(client: Any) -> bool:  # noqa: ANN401 - the same
    if client is None:
        return True
    if not isinstance(client, list) or [type(each) for each in client] not in ([int, str], [int, type(None)]):
        return False
    try:
        ipaddress.ip_address((client[1] or "::").partition("%")[0])
    except ValueError:
        return False
    return True
