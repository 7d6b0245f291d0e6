"""Sessions: starts them, and with agent pass-through gives turns to their ssh's logins."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, replace
from typing import Any

from helpers.broker import client_traffic
from helpers.broker.accounts.service import AccountService
from helpers.broker.clients import Clients
from helpers.broker.peer_credentials import Peer, start_of
from helpers.broker.remote.logind import Logind
from helpers.broker.remote.pool import Connections
from helpers.broker.remote_deadline import within_deadline
from helpers.broker.sessions.login_limiter import LoginLimiter, source_of
from helpers.broker.sessions.open_sessions import (
    AUTHENTICATING,
    CONNECTING,
    LOGGED_IN,
    OpenSession,
    OpenSessions,
)
from helpers.broker.sessions.session_ends import SessionEnds
from helpers.broker.sessions.session_starter import NO_UDP, SessionStarter, Started, parse_request
from helpers.broker.sessions.udp_paths import MAX_MS, PASSES, REFUSED, SILENT, UdpPaths
from helpers.protocol.access_mode import AccessMode
from helpers.protocol.errors import DrainingError, GatewayError, PermissionDeniedError
from helpers.protocol.event_log import EventLog
from helpers.protocol.session_answer import SessionAnswer


class SessionService:
    """Answers the session helper.

    Args:
        mode: How users authenticate.
        accounts: The users.
        starter: Starts sessions on the remote.
        clients: The clients.
        connections: The connections to the remote.
        open_sessions: The table of sessions.
        ends: Reports the ends of sessions.
        log: Receives each session.
        udp: Where UDP passes.

    Attributes:
        started: How many sessions were started: a mosh-server, or an ssh whose login the remote has accepted.
        failed: How many the broker could not start; see also `SessionEnds`.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - its collaborators, the mode and the log
        self,
        mode: AccessMode,
        accounts: AccountService,
        starter: SessionStarter,
        clients: Clients,
        connections: Connections,
        open_sessions: OpenSessions,
        ends: SessionEnds,
        log: EventLog,
        udp: UdpPaths,
    ) -> None:
        self._udp = udp
        self._ending: set[asyncio.Task[None]] = set()
        self._mode, self._accounts, self._starter, self._clients = mode, accounts, starter, clients
        self._connections, self._open, self._ends, self._log = connections, open_sessions, ends, log
        self._logins, self._logind = LoginLimiter(), Logind(connections, log)
        self.started = self.failed = 0

    async def session(self, peer: Peer, request: dict[str, Any]) -> SessionAnswer:
        """Start a session for the user who owns the peer's uid.

        Args:
            peer: The session helper, as the user's own uid.
            request: See `session_starter.parse_request`; ``connection`` and ``key`` for the log.

        Returns:
            The mosh-server's address, port and key; or the remote's addresses, for ssh.

        Raises:
            PermissionDeniedError: No user owns the peer's uid.
            GatewayError: The remote starts no session; the sentence is the reason.
        """
        user = self._accounts.owner(peer, "session")
        wanted = parse_request(request)
        client = self._clients.read(peer, request)
        login: dict[str, object] = {"sid": client.sid, "user": user, "client": client.endpoint, "key": client.key}
        began, since = time.monotonic(), time.time()
        try:
            self._check_barred(user)
            started = await within_deadline(self._starter.start(user, wanted))
        except GatewayError as error:
            self.failed += 1
            ms = (time.monotonic() - began) * 1000
            self._log.error("session_failed", **login, outcome=error.code, reason=error.message, ms=ms)
            raise
        if started.answer["transport"] == "mosh":
            self._logind.session_started(user, peer.pid)
        session = OpenSession(
            pid=peer.pid,
            start=start_of(peer.pid) or 0,  # 0: the client has disconnected
            sid=client.sid,
            user=user,
            client=client.endpoint,
            key=client.key,
            transport=started.transport,
            udp_port=None,
            since=since,
            stage=CONNECTING,
            connection=str(request.get("connection", "")),
            details={**started.log, "forced_command": wanted.forced},
        )
        self._begin(peer, session, started)
        started.answer["home"] = self._accounts.home(peer.uid)
        return started.answer

    def _check_barred(self, user: str) -> None:
        if (locked := self._accounts.why_locked(user)) is not None:
            raise PermissionDeniedError(locked)
        if (message := self._accounts.drained()) is not None:
            raise DrainingError(message)

    def _begin(self, peer: Peer, session: OpenSession, started: Started) -> None:
        """Add a session: over mosh it has started; an ssh has not logged in yet."""
        if started.answer["transport"] == "mosh":
            session = replace(session, udp_port=started.answer["port"], stage=LOGGED_IN)
        self._open.begin(session)
        if session.stage == LOGGED_IN:
            self._note_started(peer, session)

    def _note_started(self, peer: Peer, session: OpenSession) -> None:
        """Log a session that the remote has accepted, and remember its user and client."""
        self.started += 1
        self._accounts.note_session(peer.uid)
        self._connections.note_session(session.user)
        client = self._clients.read(peer, {"connection": session.connection})
        self._clients.note_login(session.user, replace(client, key=session.key), by_key=self._mode.passes_agent_through)
        self._log.info(
            "session_started",
            sid=session.sid,
            user=session.user,
            client=session.client,
            key=session.key,
            transport=session.transport,
            **session.details,
            ms=(time.time() - session.since) * 1000,
            outcome="ok",
        )

    def authenticates(self, peer: Peer) -> None:
        """Record that a session's ssh has verified the host key, and asks for the gateway's public key."""
        self._open.advance(peer.pid, AUTHENTICATING)

    def accepted(self, peer: Peer, user: str, pid: int | None = None, udp_port: int | None = None) -> None:
        """Record that the remote has accepted a session's login.

        Args:
            peer: A process of the session, or one that watches it.
            user: The user who owns its uid.
            pid: The session's process; None if it is the peer.
            udp_port: mosh-server's port, if the session started it.
        """
        session = self._open.find(peer.pid if pid is None else pid)
        if session is None or session.user != user:
            return
        # A session that starts its mosh-server over ssh has only begun when ssh has logged in.
        if session.transport == "mosh" and udp_port is None:
            return
        session = self._open.advance(session.pid, LOGGED_IN, udp_port=udp_port)
        if session is not None:
            self._note_started(peer, session)

    async def has_started(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Record that the peer's session has started without a login of its own, or has a mosh-server.

        Args:
            peer: The session helper: it shares the connection of another session's ssh, or becomes mosh-client.
            request: ``udp_port``: mosh-server's; None for ssh.

        Raises:
            PermissionDeniedError: No user owns the peer's uid.
        """
        user, udp_port = self._accounts.owner(peer, "started"), request.get("udp_port")
        self.accepted(peer, user, udp_port=udp_port if type(udp_port) is int else None)
        return {}

    async def goes_over_ssh(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Record that the peer's session goes over ssh, since the remote lacks what mosh needs.

        Args:
            peer: The session helper: it becomes ssh.
            request: Not used.

        Raises:
            PermissionDeniedError: No user owns the peer's uid.
        """
        del request
        user, session = self._accounts.owner(peer, "over_ssh"), self._open.find(peer.pid)
        if session is not None and session.user == user:
            self._open.begin(replace(session, transport="ssh", udp_port=None))
        return {}

    async def udp_passes(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Record that the first datagram of the peer's session has arrived.

        Args:
            peer: The session helper.
            request: ``ms``: after how many milliseconds.

        Raises:
            PermissionDeniedError: No user owns the peer's uid.
        """
        user, session = self._accounts.owner(peer, "udp"), self._open.find(peer.pid)
        if session is not None and session.user == user:
            self._note_udp(session, PASSES, request)
        return {}

    async def fall_back(self, peer: Peer, request: dict[str, Any]) -> SessionAnswer:
        """Continue the peer's session over ssh, since UDP does not pass.

        Args:
            peer: The session helper.
            request: The session's request; ``outcome`` and ``ms`` of the attempt; ``server``, mosh-server's pid.

        Raises:
            PermissionDeniedError: No user owns the peer's uid, the user is locked, or has no such session.
            GatewayError: The remote starts no session.
        """
        user, session = self._accounts.owner(peer, "fallback"), self._open.find(peer.pid)
        if session is None or session.user != user:
            msg = "there is no session that could go over ssh; log in again"
            raise PermissionDeniedError(msg)
        if (locked := self._accounts.why_locked(user)) is not None:
            raise PermissionDeniedError(locked)
        wanted, server = parse_request(request), request.get("server")
        outcome = REFUSED if request.get("outcome") == REFUSED else SILENT
        if session.transport == "mosh":  # else it asks again, since a broker ended before it answered
            self._note_udp(session, outcome, request)
        if type(server) is int and server > 1:
            task = asyncio.ensure_future(self._starter.end_mosh_server(user, server))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        started = await within_deadline(self._starter.over_ssh(user, wanted, NO_UDP))
        self._open.begin(replace(session, transport="ssh", udp_port=None))
        started.answer["home"] = self._accounts.home(peer.uid)
        return started.answer

    def _note_udp(self, session: OpenSession, outcome: str, request: dict[str, Any]) -> None:
        """Keep what a session found, and log it; with agent pass-through it is only logged."""
        ms, address, port = request.get("ms"), str(session.details.get("remote")), session.udp_port
        if session.transport != "mosh" or port is None or not isinstance(ms, int | float) or not 0 <= ms <= MAX_MS:
            return
        keep = not self._mode.passes_agent_through
        self._udp.note(session.user, session.sid, address, port, outcome, float(ms), keep=keep)

    async def has_failed(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Record that the peer's session has failed after the broker's answer.

        Args:
            peer: The session helper.
            request: ``code`` and ``message`` of the error (`helpers.protocol.errors`).

        Raises:
            PermissionDeniedError: No user owns the peer's uid.
        """
        user, session = self._accounts.owner(peer, "failed"), self._open.find(peer.pid)
        if session is not None and session.user == user and self._open.remove(session):
            self._ends.failed_to_start(session, str(request["code"]), str(request["message"]))
        return {}

    async def kick(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Record that an operator is ending sessions, which end as ``kicked``.

        Args:
            peer: ``gatewayctl kick``.
            request: ``sessions``: ``pid`` and ``start`` of each.

        Raises:
            PermissionDeniedError: The peer is not root.
        """
        if peer.uid != 0:
            msg = "only root may end sessions"
            raise PermissionDeniedError(msg)
        for pid, start in request["sessions"]:
            self._open.note_kicked(int(pid), int(start))
        return {}

    async def sessions(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """List the open sessions for the operator.

        Returns:
            ``sessions``: of each `OpenSession` the attributes that describe it, and the bytes ``sent`` to its client
            and ``received`` from it, the oldest first.

        Raises:
            PermissionDeniedError: The peer is not root.
        """
        del request
        if peer.uid != 0:
            msg = "only root may ask for the gateway's sessions"
            raise PermissionDeniedError(msg)
        return {"sessions": [self._described(session) for session in self._open.all()]}

    def _described(self, session: OpenSession) -> dict[str, Any]:
        traffic = client_traffic.read(session.connection)
        sent, received = (None, None) if traffic is None else (traffic.sent, traffic.received)
        described = asdict(session)
        for ours in ("details", "connection", "ended"):
            del described[ours]
        return {**described, "sent": sent, "received": received}

    async def login(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Give the user who owns the peer's uid a turn to log in on the remote with the user's own agent.

        Args:
            peer: The process that watches the login; the turn ends with it.
            request: ``connection``, the value of SSH_CONNECTION; ``key``, the first line of SSH_USER_AUTH's file.

        Returns:
            ``seconds``: how long the login may take.

        Raises:
            PermissionDeniedError: No user owns the peer's uid.
            RemoteTimeoutError: Too many other logins are in progress.
        """
        user, client = self._accounts.owner(peer, "login"), self._clients.read(peer, request)
        by_key = self._clients.knows_key(user, client)
        source = source_of(None if by_key else client.own_address, user)
        known = by_key or self._clients.knows_address(user, client)
        return {"seconds": await self._logins.take_turn(peer.pid, source, known=known)}

    async def logged_in(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """Record that the remote has accepted the user who owns the peer's uid, with the user's own agent.

        Only the gateway's own code runs with that uid, since a client cannot run anything else here. It sends this
        request when ssh, after its login on the remote, runs its LocalCommand.

        Args:
            peer: The process that watches the login.
            request: As for `login`; ``session``: the session's process.

        Raises:
            PermissionDeniedError: No user owns the peer's uid, or agent pass-through is off.
        """
        user = self._accounts.owner(peer, "logged_in")
        if not self._mode.passes_agent_through:
            msg = "the gateway logs in with its own key"
            raise PermissionDeniedError(msg)
        self.accepted(peer, user, pid=int(request["session"]))
        self._accounts.note_session(peer.uid)
        self._clients.note_login(user, self._clients.read(peer, request), by_key=True)
        return {}
