"""What the broker answers to whom. It believes the kernel's word on who asks, and no helper's."""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from helpers.broker import mosh, userdb
from helpers.broker.config import BrokerConfig
from helpers.broker.connections import Connections, Ran
from helpers.broker.keyline import OfferedKey, decode_command, parse_offered_key, permitted_lines
from helpers.broker.keys import KeySource, RemoteKeys
from helpers.broker.known_hosts import fingerprint
from helpers.broker.peers import Peer, session_id
from helpers.broker.server import Handler
from helpers.broker.users import UserTable
from helpers.errors import GatewayError, PermissionDeniedError, ProtocolError, UserNameError
from helpers.log import EventLog
from helpers.protocol import is_user_name

MOSH_OUTPUT_MAX_BYTES = 64 * 1024
"""Most output, in bytes, that a login shell may write before mosh-server's line."""

_ENDPOINT = re.compile(r"[0-9A-Fa-f:.%a-z]{2,64} [0-9]{1,5}", re.ASCII)
_LOCALE_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}", re.ASCII)
_LOCALE_NAME = re.compile(r"LANG|LC_[A-Z]{1,16}", re.ASCII)
_MAX_COMMAND_CHARS = 40_000


@dataclass
class Counters:
    """What happened since the broker started, for `gatewayctl status`."""

    lookups: int = 0
    keys_offered: int = 0
    keys_permitted: int = 0
    sessions: int = 0
    failures: int = 0


class Broker:
    """Answers the helpers and nss-systemd.

    Args:
        config: The broker's settings.
        users: Names and uids.
        keys: Where authorized_keys come from.
        connections: The connections to the remote.
        log: Where each decision goes.
        supervisor: The process that started sshd, for session ids.
    """

    def __init__(  # noqa: PLR0913 - the collaborators, each once
        self,
        config: BrokerConfig,
        users: UserTable,
        keys: KeySource,
        connections: Connections,
        log: EventLog,
        supervisor: int,
    ) -> None:
        """Take the collaborators."""
        self._config, self._users, self._keys, self._connections = config, users, keys, connections
        self._log, self._supervisor = log, supervisor
        self.counters = Counters()
        self._started = time.monotonic()

    @property
    def handlers(self) -> dict[str, Handler]:
        """What answers each request."""
        return {
            "authorized_keys": self.authorized_keys,
            "session": self.session,
            "root": self.root,
            "status": self.status,
        }

    def account(self, peer: Peer, key: str | int) -> userdb.Account | None:
        """Answer nss-systemd: only sshd, which is root, may make a new name known."""
        if key in (userdb.AUTH_USER, self._config.auth_uid):
            return userdb.Account(userdb.AUTH_USER, self._config.auth_uid, "/usr/sbin/nologin")
        if isinstance(key, int):
            name = self._users.name_of(key)
            return None if name in (None, "root") else userdb.Account(str(name), key)
        if key == "root":
            return None
        uid = self._users.uid_of(key, allocate=peer.uid == 0)
        if uid is None:
            return None
        if peer.uid == 0:
            self.counters.lookups += 1
            self._expect(key)
        return userdb.Account(key, uid)

    def _expect(self, user: str) -> None:
        """Use the time that the SSH handshake takes: sshd has just learned the name, and asks for keys next."""
        if isinstance(self._keys, RemoteKeys):
            self._keys.prefetch(user)

    async def authorized_keys(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Find the lines that let one offered key in.

        Args:
            peer: AuthorizedKeysCommand, as the account made for it or as root.
            request: ``user``, ``key_type`` and ``key`` (base64) as sshd gave them; ``connection`` or "".

        Returns:
            ``lines``: none, where nobody is let in, whatever the reason.

        Raises:
            PermissionDeniedError: Somebody else asks.
            ProtocolError: The key is none.
        """
        if peer.uid not in (0, self._config.auth_uid):
            self._log.warning("refused", op="authorized_keys", uid=peer.uid, pid=peer.pid)
            msg = "only sshd may ask for keys"
            raise PermissionDeniedError(msg)
        began = time.monotonic()
        user, offered = str(request["user"]), parse_offered_key(str(request["key_type"]), str(request["key"]))
        self.counters.keys_offered += 1
        lines: list[bytes] = []
        source, fetch_ms, reason = "-", 0.0, None
        try:
            lines, source, fetch_ms = await self._permitted(user, offered)
            reason = None if lines else "no line for this key"
        except GatewayError as error:
            reason = f"{error.code}: {error.message}"
        if lines:
            self.counters.keys_permitted += 1
            self._connections.warm_up(user)
        self._log.info(
            "key_permitted" if lines else "key_refused",
            sid=session_id(peer.pid, self._supervisor),
            user=user,
            client=_endpoint(str(request.get("connection", ""))),
            key=fingerprint(offered.blob),
            type=offered.key_type,
            source=source,
            fetch_ms=fetch_ms,
            ms=(time.monotonic() - began) * 1000,
            **({} if reason is None else {"reason": reason}),
        )
        return {"lines": [line.decode("utf-8", "surrogateescape") for line in lines]}

    async def _permitted(self, user: str, offered: OfferedKey) -> tuple[list[bytes], str, float]:
        if user != "root" and not (is_user_name(user) and self._users.uid_of(user, allocate=False)):
            msg = "no such user name"
            raise UserNameError(msg)
        if user == "root" and not self._config.permit_root:
            msg = "root is not permitted; see GATEWAY_PERMIT_ROOT"
            raise UserNameError(msg)
        file = await self._keys.read(user)
        return permitted_lines(file.content, offered), file.source, file.fetch_ms

    async def session(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Start a mosh-server for the user who owns the peer's uid.

        Args:
            peer: The session helper, as the user's own uid.
            request: ``colors``, ``locale``, ``command`` (a key's, in base64), ``original_command`` (the client's);
                ``connection`` and ``key`` for the log.

        Returns:
            ``address`` and ``port`` of the mosh-server, its ``key``, and ``predict`` for mosh-client.

        Raises:
            PermissionDeniedError: No user owns the peer's uid.
            GatewayError: The remote has no session; the sentence says why.
        """
        user = self._users.name_of(peer.uid)
        if user is None:
            self._log.warning("refused", op="session", uid=peer.uid, pid=peer.pid)
            msg = "this process belongs to no user of the gateway"
            raise PermissionDeniedError(msg)
        wanted = _mosh_request(request)
        login: dict[str, object] = {
            "sid": session_id(peer.pid, self._supervisor),
            "user": user,
            "client": _endpoint(str(request.get("connection", ""))),
            "key": _key_fingerprint(str(request.get("key", ""))),
        }
        began = time.monotonic()
        try:
            endpoint, ran = await self._start_mosh_server(user, wanted)
        except GatewayError as error:
            self.counters.failures += 1
            ms = (time.monotonic() - began) * 1000
            self._log.error("session_failed", **login, outcome=error.code, reason=error.message, ms=ms)
            raise
        self.counters.sessions += 1
        self._users.note_session(peer.uid)
        self._log.info(
            "session_started",
            **login,
            remote=ran.address,
            udp_port=endpoint.port,
            forced_command=wanted.original_command is not None or request.get("command") is not None,
            connect_ms=ran.connect_ms,
            mosh_server_ms=ran.run_ms,
            ms=(time.monotonic() - began) * 1000,
            outcome="ok",
        )
        return {
            "address": ran.address,
            "port": endpoint.port,
            "key": endpoint.key,
            "predict": self._config.mosh_predict,
        }

    async def _start_mosh_server(self, user: str, wanted: mosh.MoshRequest) -> tuple[mosh.MoshEndpoint, Ran]:
        config = self._config
        failure: GatewayError | None = None
        for locale in (wanted.locale, *mosh.LOCALE_FALLBACKS) if wanted.locale else mosh.LOCALE_FALLBACKS:

            def command(address: str, locale: Mapping[str, str] = locale) -> str:
                return mosh.server_command(
                    wanted,
                    locale,
                    address=address,
                    program=config.mosh_server,
                    ports=config.mosh_ports,
                    silence_timeout_s=config.session_timeout_s,
                )

            found: list[mosh.MoshEndpoint] = []
            ran = await self._connections.run(
                user, command, max_bytes=MOSH_OUTPUT_MAX_BYTES, until=_collect(found)
            )
            if found:
                return found[0], ran
            failure = mosh.failure(ran.completed.status, ran.completed.stderr, config.mosh_server)
            if not isinstance(failure, mosh.NoLocaleError):
                break
        assert failure is not None  # noqa: S101 - there is always one locale to try
        raise failure

    async def root(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Tell root's session which uid to become.

        Raises:
            PermissionDeniedError: The peer is not root, or root may not log in.
        """
        del request
        uid = self._users.uid_of_root() if peer.uid == 0 and self._config.permit_root else None
        if uid is None:
            msg = "root is not permitted on this gateway"
            raise PermissionDeniedError(msg)
        return {"uid": uid}

    async def status(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Tell the operator what is going on.

        Raises:
            PermissionDeniedError: The peer is not root.
        """
        del request
        if peer.uid != 0:
            msg = "only root may ask for the gateway's status"
            raise PermissionDeniedError(msg)
        return {
            "uptime_s": round(time.monotonic() - self._started, 1),
            "connections": len(self._connections),
            **vars(self.counters),
        }


def _collect(found: list[mosh.MoshEndpoint]) -> Callable[[bytes], object]:
    def line(text: bytes) -> object:
        endpoint = mosh.parse_mosh_connect(text)
        if endpoint is not None:
            found.append(endpoint)
        return endpoint

    return line


def _mosh_request(request: dict[str, Any]) -> mosh.MoshRequest:
    colors, locale = request.get("colors"), request.get("locale")
    if not isinstance(colors, int) or not 0 <= colors <= 256 or not isinstance(locale, dict):  # noqa: PLR2004
        msg = "the session request is not whole"
        raise ProtocolError(msg)
    for name, value in locale.items():
        if not (_LOCALE_NAME.fullmatch(name) and isinstance(value, str) and _LOCALE_WORD.fullmatch(value)):
            msg = "the session request has a locale that is none"
            raise ProtocolError(msg)
    original = request.get("original_command")
    carried = request.get("command")
    for text in (original, carried):
        if text is not None and (not isinstance(text, str) or len(text) > _MAX_COMMAND_CHARS or "\0" in text):
            msg = f"the command is longer than {_MAX_COMMAND_CHARS} characters"
            raise ProtocolError(msg)
    if carried is None:
        return mosh.MoshRequest(colors, locale, original)
    return mosh.MoshRequest(colors, locale, decode_command(carried), original or "")


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
    except (IndexError, binascii.Error):
        return None
