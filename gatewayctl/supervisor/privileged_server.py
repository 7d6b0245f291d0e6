"""Operations that the supervisor runs for the broker, as root.

It makes users' homes, writes the files of `AuthorizedKeysFiles`, and says what sshd logged about a connection. The
broker decides for which users. It sends requests over a socket that only it has.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from gatewayctl.supervisor.authorized_keys_files import AuthorizedKeysFiles
from gatewayctl.supervisor.home_directories import HomeDirectories
from gatewayctl.supervisor.sshd_log import SshdLog
from gatewayctl.supervisor.unproved_connections import UnprovedConnections
from helpers.broker.keys.sshd_key_cache import LONGEST_S
from helpers.protocol.errors import ProtocolError
from helpers.protocol.messages import MAX_REQUEST_BYTES, decode, encode, is_user_name

SWEEP_S = 10.0
"""Seconds between checks for unused homes."""


class PrivilegedServer:
    """Runs these operations, for one broker or, during a reload, for two.

    Args:
        homes: Users' homes.
        keys: The files from which sshd accepts keys without asking the broker.
        clients: Counts connections that the remote has not accepted.
        sshd: Answers what sshd logged about connections.
        clock: Seconds, monotonic.

    Attributes:
        lock: Held while a request is between its arrival and its answer.
        owners: The last name of each uid that has a home.
    """

    def __init__(
        self,
        homes: HomeDirectories,
        keys: AuthorizedKeysFiles,
        clients: UnprovedConnections,
        sshd: SshdLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._homes, self._keys, self._clients, self._clock = homes, keys, clients, clock
        self._sshd = sshd
        self.lock = threading.RLock()
        self._active: socket.socket | None = None
        self.owners: dict[int, str] = {}

    def set_active_broker(self, sock: socket.socket, trusted_proxies: str = "") -> None:
        """Write key files only for this broker from now on, and remove those of the previous one.

        Args:
            sock: Our end of its SOCK_SEQPACKET pair.
            trusted_proxies: That broker's GATEWAY_TRUSTED_PROXIES.
        """
        self._clients.trusted_proxies = trusted_proxies
        with self.lock:
            self._active = sock
            self._keys.clear()

    def serve(self, sock: socket.socket) -> None:
        """Serve one broker's requests until it closes its end.

        Args:
            sock: Our end of a SOCK_SEQPACKET pair; closed at the end.
        """
        with sock:
            swept_s = self._clock()
            while True:
                # By the clock and not only on timeouts: with a login every few seconds recv() never times out.
                with self.lock:
                    left_s = self._keys.sweep()
                    if self._clock() - swept_s >= SWEEP_S:
                        self._homes.sweep(self._keys.uids)
                        swept_s = self._clock()
                if not select.select([sock], [], [], min(SWEEP_S, left_s))[0]:
                    continue
                try:
                    with self.lock:
                        request = sock.recv(MAX_REQUEST_BYTES)
                        if not request:
                            break
                        sock.send(encode(self._answer(sock, request)))
                except OSError:
                    break
            with self.lock:
                if self._active is sock:
                    self._keys.clear()

    def _answer(self, sock: socket.socket, request: bytes) -> dict[str, Any]:
        try:
            message = decode(request)
            if "connection" in message:
                return {"number": message.get("number"), **self._sshd.answer(message)}
            user, uid = message["user"], message["uid"]
            lines, seconds = message.get("lines"), message.get("seconds", 0.0)
            client = message.get("client")
        except (ProtocolError, KeyError):
            return {}
        number = message.get("number")
        trouble: str | None = "not a valid request"
        if _is_valid_user(user, uid) and _is_valid_file(lines, seconds) and _is_valid_client(client):
            with self.lock:
                trouble = None if client is None else self._clients.refusal_reason(*client)
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
        self.owners[uid] = user
        return None

    def _vacate(self, user: str, uid: int) -> None:
        """Remove the previous owner's files if a uid was given to another name."""
        if (last := self.owners.get(uid, user)) != user:
            self._keys.remove(last)
            self._homes.remove(uid)


def _is_valid_user(user: object, uid: object) -> bool:
    # As file names "." and ".." would be directories.
    return isinstance(user, str) and is_user_name(user) and user not in {".", ".."} and type(uid) is int


def _is_valid_file(lines: object, seconds: Any) -> bool:  # noqa: ANN401 - unchecked data from the broker
    if lines is None:
        return True
    texts = isinstance(lines, list) and all(isinstance(line, str) and "\n" not in line for line in lines)
    return texts and type(seconds) in {int, float} and seconds <= LONGEST_S


def _is_valid_client(client: Any) -> bool:  # noqa: ANN401 - the same
    if client is None:
        return True
    if not isinstance(client, list) or [type(each) for each in client] not in ([int, str], [int, type(None)]):
        return False
    try:
        ipaddress.ip_address((client[1] or "::").partition("%")[0])
    except ValueError:
        return False
    return True
