"""Sessions: starts them, and with agent pass-through gives turns to their ssh's logins."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from helpers.broker.accounts.service import AccountService
from helpers.broker.clients import Client, Clients
from helpers.broker.peer_credentials import Peer, start_of
from helpers.broker.remote.logind import Logind
from helpers.broker.remote.pool import Connections
from helpers.broker.remote_deadline import within_deadline
from helpers.broker.sessions.login_limiter import LoginLimiter, source_of
from helpers.broker.sessions.open_sessions import OpenSession, OpenSessions
from helpers.broker.sessions.session_starter import SessionStarter, Started, parse_request
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
        log: Receives each session.

    Attributes:
        started: How many sessions were started.
        failed: How many failed to start.
    """

    def __init__(  # noqa: PLR0917 - four collaborators, the mode and the log
        self,
        mode: AccessMode,
        accounts: AccountService,
        starter: SessionStarter,
        clients: Clients,
        connections: Connections,
        open_sessions: OpenSessions,
        log: EventLog,
    ) -> None:
        self._mode, self._accounts, self._starter, self._clients = mode, accounts, starter, clients
        self._connections, self._open, self._log = connections, open_sessions, log
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
        if (locked := self._accounts.why_locked(user)) is not None:
            raise PermissionDeniedError(locked)
        if (message := self._accounts.drained()) is not None:
            raise DrainingError(message)
        wanted = parse_request(request)
        client = self._clients.read(peer, request)
        login: dict[str, object] = {"sid": client.sid, "user": user, "client": client.endpoint, "key": client.key}
        began = time.monotonic()
        try:
            started = await within_deadline(self._starter.start(user, wanted))
        except GatewayError as error:
            self.failed += 1
            ms = (time.monotonic() - began) * 1000
            self._log.error("session_failed", **login, outcome=error.code, reason=error.message, ms=ms)
            raise
        self.started += 1
        if not self._mode.passes_agent_through:  # else the remote has not authenticated the user yet, see `logged_in`
            self._accounts.note_session(peer.uid)
            self._connections.note_session(user)
            self._clients.note_login(user, client)
        if started.answer["transport"] == "mosh":
            self._logind.session_started(user, peer.pid)
        self._note(peer.pid, user, client, started)
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
        started.answer["home"] = self._accounts.home(peer.uid)
        return started.answer

    def _note(self, pid: int, user: str, client: Client, started: Started) -> None:
        start = start_of(pid)
        if start is None:
            return  # the client has disconnected
        port = started.answer["port"] if started.answer["transport"] == "mosh" else None
        self._open.begin(
            OpenSession(
                pid=pid,
                start=start,
                sid=client.sid,
                user=user,
                client=client.endpoint,
                key=client.key,
                transport=started.transport,
                udp_port=port,
                since=time.time(),
            )
        )

    async def sessions(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        """List the open sessions for the operator.

        Returns:
            ``sessions``: the attributes of each `OpenSession`, the oldest first.

        Raises:
            PermissionDeniedError: The peer is not root.
        """
        del request
        if peer.uid != 0:
            msg = "only root may ask for the gateway's sessions"
            raise PermissionDeniedError(msg)
        return {"sessions": [asdict(session) for session in self._open.all()]}

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

        Raises:
            PermissionDeniedError: No user owns the peer's uid, or agent pass-through is off.
        """
        user = self._accounts.owner(peer, "logged_in")
        if not self._mode.passes_agent_through:
            msg = "the gateway logs in with its own key"
            raise PermissionDeniedError(msg)
        self._accounts.note_session(peer.uid)
        self._clients.note_login(user, self._clients.read(peer, request), by_key=True)
        return {}
