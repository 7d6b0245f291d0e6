"""What the broker answers to whom. It believes the kernel's word on who asks, and no helper's."""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import re
import time
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from helpers.broker.accounts import userdb
from helpers.broker.accounts.uid_table import RESERVED_NAMES, UserTable
from helpers.broker.keys.cached_remote_keys import KeyFile, KeySource, RemoteKeys
from helpers.broker.keys.key_index import KeyIndexes
from helpers.broker.keys.sshd_key_cache import LONGEST_S, MARGIN_S, Remembered
from helpers.broker.peer_credentials import Peer, session_id
from helpers.broker.privileged_client import Errands
from helpers.broker.remote.addresses import Addresses
from helpers.broker.remote.logind import Logind
from helpers.broker.remote.pool import Connections
from helpers.broker.server import Handler
from helpers.broker.sessions.known_clients import Familiar
from helpers.broker.sessions.login_limiter import Logins, source_of
from helpers.broker.sessions.session_starter import Sessions, parse_request
from helpers.protocol.broker_config import BrokerConfig
from helpers.protocol.errors import GatewayError, PermissionDeniedError, RemoteTimeoutError, UserNameError
from helpers.protocol.event_log import EventLog, fault_of
from helpers.protocol.free_space import is_full, is_short
from helpers.protocol.messages import is_user_name
from helpers.ssh import agent
from helpers.ssh.authorized_keys import OfferedKey, parse_offered_key
from helpers.ssh.known_hosts import KnownHosts, fingerprint

REMOTE_TIMEOUT_S = 20.0
"""Longest wait for the remote, in seconds: below the server's WORK_TIMEOUT_S, so that the log hears how it ended."""

_T = TypeVar("_T")
_ENDS_EARLY = (
    "a line for this key is not taken, since versions of OpenSSH differ on it or its options are too long or odd"
)
_NO_ROOM = "the runtime directory is full"
_ENDPOINT = re.compile(r"[0-9A-Fa-f:.%a-z]{2,64} [0-9]{1,5}", re.ASCII)


@dataclass
class Counters:
    """What happened since the broker started, for `gatewayctl status`."""

    lookups: int = 0
    keys_offered: int = 0
    keys_permitted: int = 0
    key_files_read: int = 0
    sessions: int = 0
    failures: int = 0


class Broker:
    """Answers the helpers and nss-systemd.

    Args:
        config: The broker's settings.
        users: Names and uids.
        keys: Where authorized_keys come from.
        connections: The connections to the remote.
        known_hosts: Where the remote's host keys are looked up; None where any will do.
        identity: The gateway's key, to sign logins with; None where the gateway has none.
        errands: The way to the supervisor, which does what takes root.
        log: Where each decision goes.
        supervisor: The process that started sshd, for session ids.
        addresses: The remote's addresses, as the connections know them; None to look them up apart.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the collaborators, each once
        self,
        config: BrokerConfig,
        users: UserTable,
        keys: KeySource,
        connections: Connections,
        known_hosts: KnownHosts | None,
        identity: agent.Identity | None,
        errands: Errands,
        log: EventLog,
        supervisor: int,
        addresses: Addresses | None = None,
    ) -> None:
        """Take the collaborators."""
        self._config, self._users, self._keys, self._connections = config, users, keys, connections
        self._known_hosts, self._identity, self._errands = known_hosts, identity, errands
        self._indexes, self._remembered = KeyIndexes(), Remembered()
        if isinstance(keys, RemoteKeys):
            keys.on_file = self._renew
        addresses = addresses or Addresses(config.remote_host, config.remote_port)
        self._sessions = Sessions(config, connections, known_hosts, addresses)
        self._logins, self._familiar = Logins(), Familiar()
        self._logind = Logind(connections, log)
        self._log, self._supervisor = log, supervisor
        self._proxies = [ipaddress.ip_network(text) for text in config.trusted_proxies.split(",") if text]
        self._tasks: set[asyncio.Future[object]] = set()
        self.counters = Counters()
        self._started = time.monotonic()

    @property
    def handlers(self) -> dict[str, Handler]:
        """What answers each request."""
        return {
            "authorized_keys": self.authorized_keys,
            "session": self.session,
            "login": self.login,
            "logged_in": self.logged_in,
            "root": self.root,
            "status": self.status,
        }

    def account(self, peer: Peer, key: str | int) -> userdb.Account | None:
        """Answer nss-systemd: only sshd, which is root, may make a new name known."""
        if key in (userdb.AUTH_USER, self._config.auth_uid):
            return userdb.Account(userdb.AUTH_USER, self._config.auth_uid, "/", "/usr/sbin/nologin")
        if isinstance(key, int):
            name = self._users.name_of(key)
            if name == "root":
                name = userdb.ROOT_USER
            return None if name is None else self._account(name, key, secrets=peer.uid == 0)
        if key == "root":
            return None
        uid = self._users.uid_of(key, allocate=peer.uid == 0)
        if uid is None:
            if peer.uid == 0 and is_user_name(key) and key not in RESERVED_NAMES:
                short = is_short(self._config.state_dir)
                reason = _NO_ROOM if short else "every uid of GATEWAY_UID_RANGE is in use"
                self._log.warning("refused", op="lookup", user=key, reason=reason)
            return None
        if peer.uid == 0:
            self.counters.lookups += 1
            self._expect(key, uid)
        return self._account(key, uid, secrets=peer.uid == 0)

    def _account(self, name: str, uid: int, *, secrets: bool) -> userdb.Account:
        home, config = f"{self._config.homes_dir}/{uid}", self._config
        password = (config.passwords.get(name) or self._no_password(name)) if secrets else None
        return userdb.Account(name, uid, home, password=password)

    def _no_password(self, name: str) -> str:
        lot = hmac.digest(self._config.no_passwords_key.encode(), name.encode(), "sha256")
        return self._config.no_passwords[int.from_bytes(lot) % len(self._config.no_passwords)]

    def _expect(self, user: str, uid: int) -> None:
        """Use the time that the SSH handshake takes: sshd has just learned the name, and asks for keys next."""
        if isinstance(self._keys, RemoteKeys):
            self._keys.prefetch(user)
        if user in self._config.passwords:
            # A password brings no key, by which a home is made otherwise.
            self._later(self._errands.make_home(user, uid))

    def _later(self, errand: Coroutine[Any, Any, object]) -> None:
        task = asyncio.ensure_future(errand)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def keep_fresh(self) -> None:
        """Keep the keys of users who will probably be back fresh, until cancelled."""
        while isinstance(self._keys, RemoteKeys):
            try:
                await self._keys.keep_fresh()
            except Exception as error:  # noqa: BLE001 - as no thread for a moment; nobody would begin again
                self._log.error("fault", op="keep_fresh", error=repr(error), where=fault_of(error))
            else:
                break

    async def authorized_keys(self, peer: Peer, request: dict[str, Any]) -> bytes:
        """Find the lines that let one offered key in.

        Args:
            peer: AuthorizedKeysCommand, as the account made for it or as root.
            request: ``user``, ``key_type`` and ``key`` (base64) as sshd gave them; ``connection`` or "".

        Returns:
            The lines, each with its newline; none, where nobody is let in, whatever the reason.

        Raises:
            PermissionDeniedError: Somebody else asks.
        """
        if peer.uid not in (0, self._config.auth_uid):
            self._log.warning("refused", op="authorized_keys", uid=peer.uid, pid=peer.pid)
            msg = "only sshd may ask for keys"
            raise PermissionDeniedError(msg)
        began = time.monotonic()
        user, key_type = str(request["user"]), str(request["key_type"])
        self.counters.keys_offered += 1
        lines: list[bytes] = []
        key, source, fetch_ms, reason = None, "-", 0.0, None
        client = _endpoint(str(request.get("connection", "")))
        try:
            offered = parse_offered_key(key_type, str(request["key"]))
            key = fingerprint(offered.blob)
            lines, file = await _in_time(self._permitted(user, offered))
            source, fetch_ms = file.source, file.fetch_ms
            reason = None if lines else file.why_no_line
        except GatewayError as error:
            reason = f"{error.code}: {error.message}"
        if lines:
            self.counters.keys_permitted += 1
            if self._identity is not None:
                self._connections.warm_up(user)
            uid = self._users.uid_of_root() if user == "root" else self._users.uid_of(user, allocate=False)
            if uid is None:
                reason = "the name has no uid"
            elif is_full(self._config.state_dir) and not self._users.had_session(user):
                reason = _NO_ROOM
            else:
                reason = await self._let_in(user, uid, offered, file, lines, self._client(peer, user, key, client))
            if reason is not None:
                lines = []
        if lines and self._config.accept_any_key:
            self._log.warning("accept_any_key", user=user, text="let in by GATEWAY_ACCEPT_ANY_KEY, as anyone would be")
        if not lines:
            await self._even_out(user, client)
        self._log.info(
            "key_permitted" if lines else "key_refused",
            sid=session_id(peer.pid, self._supervisor),
            user=user,
            client=client,
            key=key,
            type=key_type,
            source=source,
            fetch_ms=fetch_ms,
            ms=(time.monotonic() - began) * 1000,
            **({} if reason is None else {"reason": reason}),
        )
        return b"".join(line + b"\n" for line in lines)

    async def _even_out(self, user: str, client: str | None) -> None:
        """Let a refusal take as long as any other: see `helpers.broker.keys.refusal_timing`."""
        if isinstance(self._keys, RemoteKeys) and not self._familiar.knows(user, self._address(client)):
            await asyncio.sleep(self._keys.pacing.left_s(user))

    def _address(self, endpoint: str | None) -> str | None:
        """Cut the port off a client's endpoint; None where it is a proxy's, and so no sign of who is behind it."""
        if endpoint is None:
            return None
        text = _host(endpoint)
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return None
        return None if any(address in proxies for proxies in self._proxies) else text

    def _client(self, peer: Peer, user: str, key: str | None, endpoint: str | None) -> tuple[int, str | None] | None:
        """Tell by what a connection is counted where any key passes; None for one that need not be."""
        sid = session_id(peer.pid, self._supervisor)
        if sid is None or self._familiar.knows(user, key):
            return None
        return int(sid.partition("-")[0]), None if endpoint is None else _host(endpoint)

    async def _let_in(  # noqa: PLR0917 - what is known of one login
        self,
        user: str,
        uid: int,
        offered: OfferedKey,
        file: KeyFile,
        lines: list[bytes],
        client: tuple[int, str | None] | None,
    ) -> str | None:
        """Have all made that a login by this key needs here, and tell why it must not go on; None where it may."""
        if file.content is None:  # any key will do
            return await self._errands.make_home(user, uid, client)
        if not isinstance(self._keys, RemoteKeys):
            return await self._errands.make_home(user, uid)
        self._remembered.add(user, file.content, offered, lines)
        return await self._remember(user, uid, self._keys.left_s(file))

    async def _remember(self, user: str, uid: int, left_s: float) -> str | None:
        seconds = min(left_s, LONGEST_S) - MARGIN_S
        return await self._errands.remember(user, uid, self._remembered.lines(user, seconds), seconds)

    def _renew(self, user: str, file: KeyFile) -> None:
        """Have sshd believe what it knows by itself for as long as we do now, or forget it if it is news."""
        if file.content is None or not self._remembered.renew(user, file.content):
            return
        uid = self._users.uid_of(user, allocate=False)  # root's too: a table that cannot be written stops no refreshing
        if uid is not None and isinstance(self._keys, RemoteKeys):
            self._later(self._remember(user, uid, self._keys.left_s(file)))

    async def _permitted(self, user: str, offered: OfferedKey) -> tuple[list[bytes], KeyFile]:
        if user != "root" and not (is_user_name(user) and self._users.uid_of(user, allocate=False)):
            msg = "no such user name"
            raise UserNameError(msg)
        if user == "root" and not self._config.permit_root:
            msg = "root is not permitted; see GATEWAY_PERMIT_ROOT"
            raise UserNameError(msg)
        file = await self._keys.read(user)
        if file.content is None:
            # A certificate would need a line for whoever signed it; its plain key is offered next.
            return [] if offered.certificate else [_plain_line(offered)], file
        index = await self._indexes.of(file.content)
        self.counters.key_files_read = self._indexes.read
        lines = index.permitted_lines(offered)
        if not lines and index.ends_early(offered):
            file = replace(file, problems=(*file.problems, _ENDS_EARLY))
        return lines, file

    async def session(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Start a session for the user who owns the peer's uid.

        Args:
            peer: The session helper, as the user's own uid.
            request: See `session_starter.parse_request`; ``connection`` and ``key`` for the log.

        Returns:
            ``transport`` and what that needs: for ``mosh``, where the mosh-server is and its key; for ``ssh``, where
            the remote is and what to ask of it.

        Raises:
            PermissionDeniedError: No user owns the peer's uid.
            GatewayError: The remote has no session; the sentence says why.
        """
        user = self._owner(peer, "session")
        wanted = parse_request(request)
        client = _endpoint(str(request.get("connection", "")))
        login: dict[str, object] = {
            "sid": session_id(peer.pid, self._supervisor),
            "user": user,
            "client": client,
            "key": _key_fingerprint(str(request.get("key", ""))),
        }
        began = time.monotonic()
        try:
            started = await _in_time(self._sessions.start(user, wanted))
        except GatewayError as error:
            self.counters.failures += 1
            ms = (time.monotonic() - began) * 1000
            self._log.error("session_failed", **login, outcome=error.code, reason=error.message, ms=ms)
            raise
        self.counters.sessions += 1
        if self._config.ssh_key is not None:  # else the remote has not judged yet, see `logged_in`
            self._users.note_session(peer.uid)
            self._connections.keep(user)
            self._familiar.note(user, self._address(client))
        if started.answer["transport"] == "mosh":
            self._logind.session_started(user, peer.pid)
        ms = (time.monotonic() - began) * 1000
        self._log.info(
            "session_started",
            **login,
            transport=started.transport,
            **started.log,
            forced_command=wanted.forced,
            ms=ms,
            outcome="ok",
        )
        return started.answer | {"home": f"{self._config.homes_dir}/{peer.uid}"}

    async def login(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Give the user who owns the peer's uid a turn to log in on the remote by the user's own agent.

        Args:
            peer: The process that watches over the login; the turn is over when it ends.
            request: ``connection`` as SSH_CONNECTION has it; ``key``, the first line of SSH_USER_AUTH's file.

        Returns:
            ``seconds``: how long the login may take.

        Raises:
            PermissionDeniedError: No user owns the peer's uid.
            RemoteTimeoutError: Too many others are logging in.
        """
        user, (address, key) = self._owner(peer, "login"), self._marks(request)
        by_key = self._familiar.knows(user, key)
        source = source_of(None if by_key else address, user)
        known = by_key or self._familiar.knows(user, address)
        return {"seconds": await self._logins.take_turn(peer.pid, source, known=known)}

    async def logged_in(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Take note that the remote has let the user who owns the peer's uid in, by the user's own agent.

        A process with that uid is the gateway's own code, since a client has no other way to run anything here; and it
        says so when ssh, which the remote has let in, runs its LocalCommand.

        Raises:
            PermissionDeniedError: No user owns the peer's uid, or it is not the agent that decides here.
        """
        user = self._owner(peer, "logged_in")
        if self._config.ssh_key is not None:
            msg = "the gateway logs in with its own key"
            raise PermissionDeniedError(msg)
        self._users.note_session(peer.uid)
        self._familiar.note(user, *self._marks(request))
        return {}

    def _marks(self, request: dict[str, Any]) -> tuple[str | None, str | None]:
        """Read by what a login may be known again: the client's address, and the key that sshd accepted."""
        address = self._address(_endpoint(str(request.get("connection", ""))))
        return address, _key_fingerprint(str(request.get("key", "")))

    def sign(self, peer: Peer, message: bytes) -> bytes:
        """Answer one message to the agent: see `helpers.ssh.agent`, for the user who owns the peer's uid."""
        try:
            user = self._owner(peer, "agent")
            if self._identity is None:
                msg = "the gateway has no key"
                raise PermissionDeniedError(msg)
            return agent.answer(message, user, self._identity, self._accept_host_key)
        except GatewayError as error:
            self._log.warning("agent_refused", uid=peer.uid, pid=peer.pid, reason=error.message)
            return agent.FAILURE

    def _accept_host_key(self, key_type: str, blob: bytes) -> None:
        if self._known_hosts is not None:
            self._known_hosts.verify(key_type, blob)

    def _owner(self, peer: Peer, op: str) -> str:
        """Find whose uid the peer has.

        Raises:
            PermissionDeniedError: No user's.
        """
        user = self._users.name_of(peer.uid)
        if user is None or (user == "root" and not self._config.permit_root):
            self._log.warning("refused", op=op, uid=peer.uid, pid=peer.pid)
            msg = "this process belongs to no user of the gateway"
            raise PermissionDeniedError(msg)
        return user

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
            "accept_any_key": self._config.accept_any_key,
            "listen_address": self._config.listen_address,
            "listen_port": self._config.listen_port,
            "auth_uid": self._config.auth_uid,
            **vars(self.counters),
        }


async def _in_time(work: Awaitable[_T]) -> _T:
    """Wait for what the remote has a part in.

    Raises:
        RemoteTimeoutError: It takes longer than `REMOTE_TIMEOUT_S`.
    """
    try:
        async with asyncio.timeout(REMOTE_TIMEOUT_S):
            return await work
    except TimeoutError:
        raise RemoteTimeoutError("the remote host did not answer in time") from None


def _plain_line(offered: OfferedKey) -> bytes:
    return f"{offered.key_type} {base64.b64encode(offered.blob).decode('ascii')}".encode("ascii")


def _endpoint(connection: str) -> str | None:
    """Write the client's end of a connection, ``address:port``, from sshd's words; None where there is none."""
    client = " ".join(connection.split(" ")[:2])
    if not _ENDPOINT.fullmatch(client):
        return None
    address, port = client.split(" ")
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _host(endpoint: str) -> str:
    return endpoint.rpartition(":")[0].strip("[]")


def _key_fingerprint(user_auth: str) -> str | None:
    """Name the key that sshd accepted, from the first line of SSH_USER_AUTH; None for another way in."""
    words = user_auth.split(" ")
    try:
        return fingerprint(base64.b64decode(words[2], validate=True)) if words[0] == "publickey" else None
    except (IndexError, ValueError):
        return None
